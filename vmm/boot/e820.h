// The memory map a guest finds at boot.
#pragma once

#include <cstdint>
#include <vector>

#include "vmm/memory/guest_memory.h"

namespace pollux::vmm::boot {

// Numbers of the BIOS call INT 15h, AX=E820h (ACPI 6.4, 15.1).
enum class E820Type : std::uint32_t { kUsable = 1, kReserved = 2, kAcpi = 3 };

struct E820Range {
  GuestAddress start;
  std::uint64_t bytes = 0;
  E820Type type = E820Type::kUsable;
  bool operator==(const E820Range&) const = default;
};

// RAM, less the part between the BIOS data area and 1 MiB, where the ACPI tables are. Ascending, no overlaps.
std::vector<E820Range> memory_map(const GuestMemory& memory);

}  // namespace pollux::vmm::boot
