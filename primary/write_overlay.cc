#include "primary/write_overlay.h"

#include <algorithm>
#include <cstring>
#include <iterator>

namespace pollux::primary {
namespace {

WriteOverlay::Extent cut(const WriteOverlay::Extent& extent, std::uint64_t from, std::uint64_t to) {
  WriteOverlay::Extent part = extent;
  const std::uint64_t start = std::max(extent.offset, from);
  const std::uint64_t end = std::min(extent.offset + extent.length, to);
  part.data_offset += start - extent.offset;
  part.offset = start;
  part.length = end - start;
  return part;
}

}  // namespace

// Makes `offset` a boundary between extents.
void WriteOverlay::split_at(std::uint64_t offset) {
  auto after = extents_.upper_bound(offset);
  if (after == extents_.begin()) return;
  Extent& extent = std::prev(after)->second;
  const std::uint64_t end = extent.offset + extent.length;
  if (offset <= extent.offset || offset >= end) return;
  const Extent tail = cut(extent, offset, end);
  extent.length = offset - extent.offset;
  extents_.emplace(offset, tail);
}

void WriteOverlay::insert(std::uint64_t offset, std::uint64_t length, Sequence sequence,
                          std::shared_ptr<const Bytes> data) {
  if (length == 0) return;
  split_at(offset);
  split_at(offset + length);
  extents_.erase(extents_.lower_bound(offset), extents_.lower_bound(offset + length));
  extents_.emplace(offset, Extent{offset, length, sequence, std::move(data), 0});
}

void WriteOverlay::erase(std::uint64_t offset, std::uint64_t length, Sequence sequence) {
  auto it = extents_.lower_bound(offset);
  while (it != extents_.end() && it->first < offset + length) {
    it = it->second.sequence == sequence ? extents_.erase(it) : std::next(it);
  }
}

std::vector<WriteOverlay::Extent> WriteOverlay::overlapping(std::uint64_t offset, std::uint64_t length) const {
  std::vector<Extent> found;
  const std::uint64_t end = offset + length;
  auto it = extents_.upper_bound(offset);
  if (it != extents_.begin()) --it;
  for (; it != extents_.end() && it->first < end; ++it) {
    if (it->second.offset + it->second.length > offset) found.push_back(cut(it->second, offset, end));
  }
  return found;
}

void WriteOverlay::patch(std::uint64_t offset, MutableByteView into, const std::vector<Extent>& extents) {
  for (const Extent& extent : extents) {
    std::byte* target = into.data() + (extent.offset - offset);
    if (extent.data) {
      std::memcpy(target, extent.data->data() + extent.data_offset, extent.length);
    } else {
      std::memset(target, 0, extent.length);
    }
  }
}

}  // namespace pollux::primary
