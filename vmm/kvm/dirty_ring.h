// The dirty ring of one vCPU (Documentation/virt/kvm/api.rst, 8.29): KVM appends the pages this vCPU writes.
#pragma once

#include <cstdint>

#include "vmm/kvm/mapping.h"
#include "vmm/kvm/vm.h"

namespace pollux::vmm::kvm {

// Used by the vCPU's own thread, or by another while that thread is parked.
class DirtyRing {
 public:
  DirtyRing() = default;  // no ring: nothing to harvest
  DirtyRing(const Vm& vm, const Fd& vcpu);

  // Moves every entry into GuestMemory::dirty(); true when there was any, and then Vm::reset_dirty_rings()
  // must follow before the vCPU runs.
  bool harvest(Vm& vm);

 private:
  Mapping mapping_;
  std::uint32_t mask_ = 0;
  std::uint32_t next_ = 0;
};

}  // namespace pollux::vmm::kvm
