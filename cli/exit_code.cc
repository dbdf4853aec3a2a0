#include "cli/exit_code.h"

#include <spdlog/spdlog.h>

namespace pollux::cli {

int exit_code_of(const vmm::MachineExit& exit, int signal) {
  switch (exit.reason) {
    case vmm::ExitReason::kPowerOff:
      if (exit.detail.empty()) return 0;
      spdlog::error("{}", exit.detail);
      return kCrashExit;
    case vmm::ExitReason::kReset: return kResetExit;
    case vmm::ExitReason::kCrash: spdlog::error("the guest crashed: {}", exit.detail); return kCrashExit;
    case vmm::ExitReason::kHostFailed: spdlog::error("this host failed: {}", exit.detail); return kFailureExit;
    case vmm::ExitReason::kRequested: return signal == 0 ? 0 : 128 + signal;
  }
  return kFailureExit;
}

}  // namespace pollux::cli
