// The machine for stock guests: a PC with in-kernel interrupt controllers, ACPI and virtio-mmio devices.
//
// Threads: one per vCPU, one I/O thread for NICs, consoles and rng, one per disk; and the controlling one.
#pragma once

#include <memory>

#include "vmm/gates/input_gate.h"
#include "vmm/gates/output_gate.h"
#include "vmm/machine/backends.h"
#include "vmm/machine/machine.h"

namespace pollux::vmm {

// Both throw UsageError for a bad kernel, initrd or config, Error when KVM refuses.
std::unique_ptr<Machine> boot_stock_machine(const MachineConfig& config, const BootSource& source, Backends& backends,
                                            InputGate& input, OutputGate& output, DirtyLog dirty_log);
// `memory` already holds the guest's pages; `state` is what save() gave.
std::unique_ptr<Machine> restore_stock_machine(const MachineConfig& config, std::unique_ptr<GuestMemory> memory,
                                               ByteView state, Backends& backends, InputGate& input,
                                               OutputGate& output, DirtyLog dirty_log);

}  // namespace pollux::vmm
