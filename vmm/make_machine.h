// A machine of the kind that its configuration says.
#pragma once

#include <memory>

#include "vmm/gates/input_gate.h"
#include "vmm/gates/output_gate.h"
#include "vmm/machine/backends.h"
#include "vmm/machine/machine.h"

namespace pollux::vmm {

// How this host runs the machine; nothing that the guest sees.
struct MachineOptions {
  DirtyLog dirty_log = DirtyLog::kBitmap;
  EpochLength epoch_length;  // of a deterministic machine while it runs freely
};

// Both throw UsageError for a bad kernel, initrd or config, Error when KVM refuses.
std::unique_ptr<Machine> boot_machine(const MachineConfig& config, const BootSource& source, Backends& backends,
                                      InputGate& input, OutputGate& output, const MachineOptions& options = {});
// `memory` already holds the guest's pages; `state` is what save() gave.
std::unique_ptr<Machine> restore_machine(const MachineConfig& config, std::unique_ptr<GuestMemory> memory,
                                         ByteView state, Backends& backends, InputGate& input, OutputGate& output,
                                         const MachineOptions& options = {});

}  // namespace pollux::vmm
