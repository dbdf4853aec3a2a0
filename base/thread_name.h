// Names of threads, as `top -H` and debuggers show them.
#pragma once

#include <pthread.h>

#include <cstddef>

namespace pollux {

inline constexpr std::size_t kThreadNameBytes = 16;  // pthread_setname_np(3), with the zero at its end

template <std::size_t kBytes>
void name_this_thread(const char (&name)[kBytes]) {
  static_assert(kBytes <= kThreadNameBytes);
  ::pthread_setname_np(::pthread_self(), name);
}

}  // namespace pollux
