#include "cli/fail_stop.h"

#include <unistd.h>

#include <csignal>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <new>
#include <system_error>

#include "cli/exit_code.h"
#include "vmm/devices/terminal.h"

namespace pollux::cli {
namespace {

// Without memory: nothing here may need any.
[[noreturn]] void stop(const char* why) {
  for (const char* part : {"pollux: ", why, ": this host stops\n"}) {
    if (::write(STDERR_FILENO, part, std::strlen(part)) < 0) break;
  }
  vmm::restore_terminal();
  ::_exit(kFailureExit);
}

[[noreturn]] void on_terminate() {
  try {
    if (const auto exception = std::current_exception()) std::rethrow_exception(exception);
  } catch (const std::bad_alloc&) {
    stop("out of memory");
  } catch (const std::system_error& error) {
    stop(error.what());
  } catch (...) {
  }
  std::abort();
}

}  // namespace

void fail_stop_without_resources() {
  std::set_new_handler([] { stop("out of memory"); });
  std::set_terminate(on_terminate);
  // abort() goes on when this returns.
  std::signal(SIGABRT, [](int) { vmm::restore_terminal(); });
}

}  // namespace pollux::cli
