#include "vmm/kvm/dirty_ring.h"

#include <bit>

namespace pollux::vmm::kvm {

DirtyRing::DirtyRing(const Vm& vm, const Fd& vcpu) : mask_(vm.ring_entries() - 1) {
  POLLUX_ASSERT(std::has_single_bit(vm.ring_entries()));
  mapping_ = Mapping(vcpu, vm.ring_entries() * sizeof(kvm_dirty_gfn), KVM_DIRTY_LOG_PAGE_OFFSET * kPageSize,
                     "the dirty ring");
}

bool DirtyRing::harvest(Vm& vm) {
  if (mapping_.size() == 0) return false;
  auto* entries = mapping_.as<kvm_dirty_gfn>();
  const std::uint32_t first = next_;
  // At most one round: a ring whose every entry is dirty ends here too.
  while (next_ - first <= mask_) {
    kvm_dirty_gfn& entry = entries[next_ & mask_];
    if (!(__atomic_load_n(&entry.flags, __ATOMIC_ACQUIRE) & KVM_DIRTY_GFN_F_DIRTY)) break;
    if (const auto gfn = vm.frame_of(entry.slot, entry.offset)) vm.memory().dirty().add(*gfn);
    __atomic_store_n(&entry.flags, KVM_DIRTY_GFN_F_RESET, __ATOMIC_RELEASE);
    ++next_;
  }
  return next_ != first;
}

}  // namespace pollux::vmm::kvm
