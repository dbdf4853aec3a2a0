#include "base/fd.h"

#include <sys/eventfd.h>
#include <unistd.h>

#include <cstdint>

#include "base/error.h"

namespace pollux {

void Fd::reset() {
  if (fd_ >= 0) ::close(std::exchange(fd_, -1));
}

Fd make_eventfd() {
  Fd fd(::eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC));
  if (!fd) throw errno_error("create", "eventfd");
  return fd;
}

void signal_eventfd(const Fd& fd) {
  const std::uint64_t one = 1;
  [[maybe_unused]] const auto written = ::write(fd.get(), &one, sizeof one);
}

bool drain_eventfd(const Fd& fd) {
  std::uint64_t count = 0;
  return ::read(fd.get(), &count, sizeof count) == sizeof count;
}

}  // namespace pollux
