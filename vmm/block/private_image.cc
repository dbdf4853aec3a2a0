#include "vmm/block/private_image.h"

#include <algorithm>
#include <cstring>

namespace pollux::vmm {

bool PrivateImage::read(std::uint64_t offset, MutableByteView into) {
  if (!Image::read(offset, into)) return false;
  const std::lock_guard lock(mutex_);
  for (std::uint64_t done = 0; done < into.size();) {
    const std::uint64_t at = (offset + done) % kBlockBytes;
    const std::uint64_t part = std::min<std::uint64_t>(kBlockBytes - at, into.size() - done);
    const auto block = blocks_.find((offset + done) / kBlockBytes);
    if (block != blocks_.end()) std::memcpy(into.data() + done, block->second.data() + at, part);
    done += part;
  }
  return true;
}

bool PrivateImage::write(std::uint64_t offset, ByteView from) {
  const std::lock_guard lock(mutex_);
  for (std::uint64_t done = 0; done < from.size();) {
    const std::uint64_t at = (offset + done) % kBlockBytes;
    const std::uint64_t part = std::min<std::uint64_t>(kBlockBytes - at, from.size() - done);
    Bytes* block = changed_block((offset + done) / kBlockBytes);
    if (block == nullptr) return false;
    std::memcpy(block->data() + at, from.data() + done, part);
    done += part;
  }
  return true;
}

bool PrivateImage::discard(std::uint64_t offset, std::uint64_t length) {
  constexpr std::uint64_t kPart = std::uint64_t{1} << 20;
  const Bytes zeros(std::min(length, kPart));
  for (std::uint64_t done = 0; done < length; done += kPart) {
    if (!write(offset + done, ByteView(zeros).first(std::min(length - done, kPart)))) return false;
  }
  return true;
}

// With mutex_ held. Nothing: the file could not be read.
Bytes* PrivateImage::changed_block(std::uint64_t index) {
  const auto found = blocks_.find(index);
  if (found != blocks_.end()) return &found->second;
  Bytes block(kBlockBytes);
  const std::uint64_t start = index * kBlockBytes;
  // The last one may be shorter.
  if (!Image::read(start, MutableByteView(block).first(std::min(kBlockBytes, size() - start)))) return nullptr;
  return &blocks_.emplace(index, std::move(block)).first->second;
}

}  // namespace pollux::vmm
