// An owned file descriptor.
#pragma once

#include <utility>

namespace pollux {

class Fd {
 public:
  Fd() = default;
  explicit Fd(int fd) : fd_(fd) {}
  Fd(Fd&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  Fd& operator=(Fd&& other) noexcept {
    if (this != &other) {
      reset();
      fd_ = std::exchange(other.fd_, -1);
    }
    return *this;
  }
  Fd(const Fd&) = delete;
  Fd& operator=(const Fd&) = delete;
  ~Fd() { reset(); }

  [[nodiscard]] int get() const { return fd_; }
  [[nodiscard]] explicit operator bool() const { return fd_ >= 0; }
  [[nodiscard]] int release() { return std::exchange(fd_, -1); }
  void reset();

 private:
  int fd_ = -1;
};

// A non-blocking, close-on-exec eventfd. Throws Error.
[[nodiscard]] Fd make_eventfd();

// Adds 1 to an eventfd; a full counter means that its reader has been told already.
void signal_eventfd(const Fd& fd);

// Takes the eventfd's count (to zero). False when it was zero.
bool drain_eventfd(const Fd& fd);

}  // namespace pollux
