#include "base/error.h"

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace pollux {

Error errno_error(const std::string& operation, const std::string& object) {
  return errno_error(operation, object, errno);
}

Error errno_error(const std::string& operation, const std::string& object, int error_number) {
  return Error(operation + " " + object + ": " + std::strerror(error_number));
}

void invariant_failed(const char* condition, const char* file, int line) {
  // stdio, not the logger: the process's state can no longer be trusted.
  std::fprintf(stderr, "invariant failed: %s at %s:%d\n", condition, file, line);
  std::abort();
}

}  // namespace pollux
