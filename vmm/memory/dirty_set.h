// The set of guest pages written since the last harvest, whoever wrote them: vCPUs (as KVM reports them)
// or the VMM itself (through GuestMemory).
//
// Cost of a harvest is proportional to the pages in it, not to the size of the guest.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

#include "vmm/memory/address.h"

namespace pollux::vmm {

// add() may be called from any thread; take() only while no page can be written (machine paused).
class DirtySet {
 public:
  // Accepts frame numbers below `limit`.
  explicit DirtySet(Gfn limit);

  void add(Gfn gfn);
  // The dirty pages in ascending order; the set is empty afterwards.
  std::vector<Gfn> take();
  [[nodiscard]] std::size_t size() const;

 private:
  std::uint64_t limit_;
  std::unique_ptr<std::atomic<std::uint64_t>[]> bits_;  // one per frame: already in pages_
  mutable std::mutex mutex_;
  std::vector<Gfn> pages_;
};

}  // namespace pollux::vmm
