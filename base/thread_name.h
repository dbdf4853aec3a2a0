// Names of threads, as `top -H` and debuggers show them.
#pragma once

#include <pthread.h>

#include <string>
#include <string_view>

namespace pollux {

// Of a longer name, the beginning (pthread_setname_np(3) takes 15 characters).
inline void name_this_thread(std::string_view name) {
  constexpr std::size_t kLongest = 15;
  ::pthread_setname_np(::pthread_self(), std::string(name.substr(0, kLongest)).c_str());
}

}  // namespace pollux
