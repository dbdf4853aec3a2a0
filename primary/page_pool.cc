#include "primary/page_pool.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstring>
#include <string>
#include <utility>

#include "base/error.h"

namespace pollux::primary {
namespace {
constexpr std::size_t kChunkBytes = kPagesPerChunk * kPageSize;
}

PageChunk::~PageChunk() { pool_.give_back(memory_); }

void PageChunk::append(vmm::Gfn gfn, std::span<const std::byte, kPageSize> page) {
  POLLUX_ASSERT(!full());
  std::memcpy(memory_ + gfns_.size() * kPageSize, page.data(), kPageSize);
  gfns_.push_back(gfn);
}

PagePool::PagePool(std::size_t bytes) : chunk_count_(std::max<std::size_t>(bytes / kChunkBytes, 2)) {
  const std::size_t size = chunk_count_ * kChunkBytes;
  void* mapping = ::mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (mapping == MAP_FAILED) throw errno_error("map", std::to_string(size >> 20) + " MiB of staging memory");
  mapping_ = static_cast<std::byte*>(mapping);
  ::madvise(mapping, size, MADV_HUGEPAGE);
  for (std::size_t i = chunk_count_; i-- > 0;) free_.push_back(mapping_ + i * kChunkBytes);
}

void PagePool::touch() {
  if (std::exchange(touched_, true)) return;
  std::memset(mapping_, 0, chunk_count_ * kChunkBytes);
}

PagePool::~PagePool() {
  POLLUX_ASSERT(free_.size() == chunk_count_);
  ::munmap(mapping_, chunk_count_ * kChunkBytes);
}

std::unique_ptr<PageChunk> PagePool::try_acquire() {
  const std::lock_guard lock(mutex_);
  if (free_.empty() || stopped_) return nullptr;
  std::byte* memory = free_.back();
  free_.pop_back();
  return std::make_unique<PageChunk>(*this, memory);
}

std::unique_ptr<PageChunk> PagePool::acquire() {
  {
    std::unique_lock lock(mutex_);
    returned_.wait(lock, [&] { return stopped_ || !free_.empty(); });
    if (stopped_) return nullptr;
  }
  // Only one thread, the epoch engine's, acquires: what was free a moment ago still is.
  return try_acquire();
}

void PagePool::stop() {
  {
    const std::lock_guard lock(mutex_);
    stopped_ = true;
  }
  returned_.notify_all();
}

void PagePool::give_back(std::byte* memory) {
  {
    const std::lock_guard lock(mutex_);
    free_.push_back(memory);
  }
  returned_.notify_one();
}

}  // namespace pollux::primary
