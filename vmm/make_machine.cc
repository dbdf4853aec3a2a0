#include "vmm/make_machine.h"

#include <utility>

#include "vmm/deterministic/deterministic_machine.h"
#include "vmm/machine/stock_machine.h"

namespace pollux::vmm {
namespace {

DeterministicOptions deterministic(const MachineOptions& options) {
  return {.dirty_log = options.dirty_log, .disks = DiskMode::kConcurrent, .epoch_length = options.epoch_length};
}

}  // namespace

std::unique_ptr<Machine> boot_machine(const MachineConfig& config, const BootSource& source, Backends& backends,
                                      InputGate& input, OutputGate& output, const MachineOptions& options) {
  if (config.profile == MachineProfile::kDeterministic) {
    return DeterministicMachine::boot(config, source, backends, input, output, deterministic(options));
  }
  return boot_stock_machine(config, source, backends, input, output, options.dirty_log);
}

std::unique_ptr<Machine> restore_machine(const MachineConfig& config, std::unique_ptr<GuestMemory> memory,
                                         ByteView state, Backends& backends, InputGate& input, OutputGate& output,
                                         const MachineOptions& options) {
  if (config.profile == MachineProfile::kDeterministic) {
    return DeterministicMachine::restore(config, std::move(memory), state, backends, input, output,
                                         deterministic(options));
  }
  return restore_stock_machine(config, std::move(memory), state, backends, input, output, options.dirty_log);
}

}  // namespace pollux::vmm
