// Which blocks of the disks were written during full sync: they must be sent (again) before protection begins.
#pragma once

#include <cstdint>
#include <mutex>
#include <set>
#include <vector>

#include "vmm/gates/output_gate.h"

namespace pollux::primary {

// Full sync compares and ships disks in blocks of this many bytes; the last block of a disk may be shorter.
inline constexpr std::uint64_t kSyncBlockSize = 64 * 1024;

struct BlockRef {
  vmm::DiskIndex disk;
  std::uint64_t block = 0;  // offset / kSyncBlockSize
  auto operator<=>(const BlockRef&) const = default;
};

// Thread safe.
class BlockTracker {
 public:
  void mark(vmm::DiskIndex disk, std::uint64_t offset, std::uint64_t length);
  // The blocks marked since the last call, in disk order.
  std::vector<BlockRef> take();
  [[nodiscard]] std::size_t size() const;

 private:
  mutable std::mutex mutex_;
  std::set<BlockRef> blocks_;  // bounded by the disks' sizes
};

}  // namespace pollux::primary
