// The root of every exception thrown on purpose: what failed, on what object, and why, in one line.
#pragma once

#include <stdexcept>
#include <string>

namespace pollux {

// A failed operation. what() is one line without a prefix; the CLI prints it as it is.
class Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// The user's mistake (an option, a file, a config key): the CLI exits with 2.
class UsageError : public Error {
 public:
  using Error::Error;
};

// "<operation> <object>: <strerror(errno)>"; takes errno at the call.
[[nodiscard]] Error errno_error(const std::string& operation, const std::string& object);
[[nodiscard]] Error errno_error(const std::string& operation, const std::string& object, int error_number);

// An invariant that stays on in release: logs `what`, then aborts. For states no input may reach.
[[noreturn]] void invariant_failed(const char* condition, const char* file, int line);

}  // namespace pollux

#define POLLUX_ASSERT(condition) \
  (static_cast<bool>(condition) ? (void)0 : ::pollux::invariant_failed(#condition, __FILE__, __LINE__))
