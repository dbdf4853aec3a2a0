#include "vmm/boot/e820.h"

#include "vmm/machine/layout.h"

namespace pollux::vmm::boot {

std::vector<E820Range> memory_map(const GuestMemory& memory) {
  const GuestAddress hole = layout::kBiosData, high = layout::kOneMiB;
  std::vector<E820Range> map{{GuestAddress{0}, hole.value, E820Type::kUsable},
                             {hole, high.value - hole.value, E820Type::kReserved}};
  for (const GuestMemory::Region& region : memory.regions()) {
    const GuestAddress start = std::max(region.start, high);
    const GuestAddress end = region.start + region.bytes.size();
    if (end > start) map.push_back({start, end.value - start.value, E820Type::kUsable});
  }
  return map;
}

}  // namespace pollux::vmm::boot
