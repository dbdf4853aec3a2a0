// The set of guest pages written since the last harvest, whoever wrote them: vCPUs (as KVM reports them)
// or the VMM itself (through GuestMemory).
//
// A bitmap of frames under a bitmap of its non-zero words: adding locks nothing, and a harvest finds the pages in
// ascending order at the cost of those in it and of one summary word for each 4096 frames (16 MiB) of the guest.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <vector>

#include "vmm/memory/address.h"

namespace pollux::vmm {

// add() and merge() may be called from any thread; take() only while no page can be written (machine paused).
class DirtySet {
 public:
  static constexpr unsigned kFramesPerWord = 64;

  // Accepts frame numbers below `limit`.
  explicit DirtySet(Gfn limit);

  void add(Gfn gfn);
  // The frames first + i of every set bit i of `bits`; `first` is a multiple of kFramesPerWord.
  void merge(Gfn first, std::uint64_t bits);
  // The dirty pages in ascending order; the set is empty afterwards.
  std::vector<Gfn> take();

 private:
  using Words = std::unique_ptr<std::atomic<std::uint64_t>[]>;

  std::uint64_t limit_;
  std::uint64_t summary_words_;
  Words frames_;   // a bit for each frame
  Words summary_;  // a bit for each word of frames_ that is not zero
  std::size_t last_taken_ = 0;
};

}  // namespace pollux::vmm
