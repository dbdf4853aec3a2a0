#include "vmm/memory/dirty_set.h"

#include <algorithm>

#include "base/error.h"

namespace pollux::vmm {

DirtySet::DirtySet(Gfn limit)
    : limit_(limit.value), bits_(std::make_unique<std::atomic<std::uint64_t>[]>((limit.value + 63) / 64)) {}

void DirtySet::add(Gfn gfn) {
  POLLUX_ASSERT(gfn.value < limit_);
  const std::uint64_t bit = std::uint64_t{1} << (gfn.value % 64);
  if (bits_[gfn.value / 64].fetch_or(bit, std::memory_order_relaxed) & bit) return;
  const std::lock_guard lock(mutex_);
  pages_.push_back(gfn);
}

std::vector<Gfn> DirtySet::take() {
  std::vector<Gfn> taken;
  {
    const std::lock_guard lock(mutex_);
    // The next epoch will likely be about as dirty: its vector should not grow page by page.
    taken.reserve(pages_.capacity());
    taken.swap(pages_);
    for (const Gfn gfn : taken) {
      bits_[gfn.value / 64].fetch_and(~(std::uint64_t{1} << (gfn.value % 64)), std::memory_order_relaxed);
    }
  }
  std::sort(taken.begin(), taken.end());
  return taken;
}

std::size_t DirtySet::size() const {
  const std::lock_guard lock(mutex_);
  return pages_.size();
}

}  // namespace pollux::vmm
