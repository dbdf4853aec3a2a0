#include "primary/block_tracker.h"

namespace pollux::primary {

void BlockTracker::mark(vmm::DiskIndex disk, std::uint64_t offset, std::uint64_t length) {
  if (length == 0) return;
  const std::lock_guard lock(mutex_);
  const std::uint64_t last = (offset + length - 1) / kSyncBlockSize;
  for (std::uint64_t block = offset / kSyncBlockSize; block <= last; ++block) blocks_.insert({disk, block});
}

std::vector<BlockRef> BlockTracker::take() {
  const std::lock_guard lock(mutex_);
  std::vector<BlockRef> taken(blocks_.begin(), blocks_.end());
  blocks_.clear();
  return taken;
}

std::size_t BlockTracker::size() const {
  const std::lock_guard lock(mutex_);
  return blocks_.size();
}

}  // namespace pollux::primary
