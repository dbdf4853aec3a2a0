// The exit codes of `pollux`, as its help documents them.
#pragma once

#include "vmm/machine/machine.h"

namespace pollux::cli {

inline constexpr int kFailureExit = 1;
inline constexpr int kUsageExit = 2;
inline constexpr int kResetExit = 3;
inline constexpr int kCrashExit = 4;
inline constexpr int kHandedOverExit = 5;
inline constexpr int kDivergedExit = 6;
inline constexpr int kLogCutExit = 7;

// How a machine ended, as an exit code; a crash is logged. `signal` is the one that asked for it, or 0.
[[nodiscard]] int exit_code_of(const vmm::MachineExit& exit, int signal);

}  // namespace pollux::cli
