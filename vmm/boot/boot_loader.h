// Puts everything a fresh guest starts from into its memory.
#pragma once

#include "vmm/machine/machine.h"
#include "vmm/memory/guest_memory.h"

namespace pollux::vmm::boot {

// Smaller machines have no room for the boot data and a kernel.
inline constexpr std::uint64_t kMinMemory = std::uint64_t{4} << 20;

// Kernel, initrd, command line, zero page, page tables, ACPI tables of `config`. Returns the entry point, to
// be entered as long_mode.h says. Throws UsageError for what the user gave wrong.
GuestAddress load_guest(const MachineConfig& config, const BootSource& source, GuestMemory& memory);

}  // namespace pollux::vmm::boot
