// The CPU state of the 64-bit boot protocol (Documentation/arch/x86/boot.rst, "64-bit Boot Protocol"): long
// mode, paging with an identity mapping, __BOOT_CS and __BOOT_DS loaded, interrupts off, RSI at the zero
// page.
#pragma once

#include "vmm/kvm/kvm_abi.h"

#include "vmm/memory/guest_memory.h"

namespace pollux::vmm::boot {

// Writes page tables that map the first 4 GiB to themselves, and the GDT.
void write_long_mode_tables(GuestMemory& memory);

// `registers` are those of a reset vCPU; what the protocol does not say is left.
kvm_sregs2 long_mode_system_registers(kvm_sregs2 registers);
kvm_regs entry_registers(GuestAddress entry);

}  // namespace pollux::vmm::boot
