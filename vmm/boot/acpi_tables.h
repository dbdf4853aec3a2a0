// The ACPI tables that describe a machine to its guest (ACPI 6.4, chapter 5).
#pragma once

#include "base/bytes.h"
#include "vmm/machine/machine_config.h"
#include "vmm/memory/address.h"

namespace pollux::vmm::boot {

// RSDP first, then XSDT, FADT, MADT, FACS and DSDT: one block to be put at `base`, which is a multiple of 64.
Bytes acpi_tables(const MachineConfig& config, GuestAddress base);

}  // namespace pollux::vmm::boot
