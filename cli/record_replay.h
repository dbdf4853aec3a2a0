// pollux vm --record and --replay: a deterministic guest's run, kept in a file and had again.
#pragma once

#include <string>

#include "cli/machine_options.h"

namespace pollux::cli {

// Like a guest that just runs; returns the exit code.
int record_run(const MachineOptions& options, const std::string& log, DiskUse disks);
// The recorded run again, without network and input; disks are read and never written. Returns the exit code: 0 when
// every epoch of the log was the same, kDivergedExit when one was not, kLogCutExit when they were and the log is not whole.
int replay_run(const MachineOptions& options, const std::string& log);

}  // namespace pollux::cli
