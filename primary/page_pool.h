// Fixed memory for page copies on their way to the backups.
//
// The pool is the bound on staged pages: when it is empty, whoever copies waits until a backup has been sent its
// part. The memory is touched before the first use, so that no page fault of ours falls into the guest's
// pause; not at construction: a replica that promotes has no time for that.
#pragma once

#include <condition_variable>
#include <cstddef>
#include <memory>
#include <mutex>
#include <vector>

#include "base/bytes.h"
#include "vmm/memory/address.h"

namespace pollux::primary {

// Pages of one chunk: one message's body (1 MiB).
inline constexpr std::size_t kPagesPerChunk = 256;

class PagePool;

// Copies of up to kPagesPerChunk pages, contiguous, in the order of `gfns`. Returns to its pool when destroyed.
class PageChunk {
 public:
  PageChunk(PagePool& pool, std::byte* memory) : pool_(pool), memory_(memory) { gfns_.reserve(kPagesPerChunk); }
  ~PageChunk();
  PageChunk(const PageChunk&) = delete;
  PageChunk& operator=(const PageChunk&) = delete;

  void append(vmm::Gfn gfn, std::span<const std::byte, kPageSize> page);
  [[nodiscard]] bool full() const { return gfns_.size() == kPagesPerChunk; }
  [[nodiscard]] const std::vector<vmm::Gfn>& gfns() const { return gfns_; }
  [[nodiscard]] ByteView page(std::size_t index) const { return {memory_ + index * kPageSize, kPageSize}; }

 private:
  PagePool& pool_;
  std::byte* memory_;
  std::vector<vmm::Gfn> gfns_;
};

// Thread safe. Outlives its chunks.
class PagePool {
 public:
  // Holds `bytes`, rounded down to whole chunks, at least two chunks. Throws Error when the host refuses.
  explicit PagePool(std::size_t bytes);
  ~PagePool();
  PagePool(const PagePool&) = delete;
  PagePool& operator=(const PagePool&) = delete;

  // Makes the host give all of the memory now; the first time only. By the thread that acquires.
  void touch();
  // Nothing when every chunk is in use.
  [[nodiscard]] std::unique_ptr<PageChunk> try_acquire();
  // Waits for a chunk; nothing after stop().
  [[nodiscard]] std::unique_ptr<PageChunk> acquire();
  // Lets every waiter go.
  void stop();

  [[nodiscard]] std::size_t chunk_count() const { return chunk_count_; }

 private:
  friend class PageChunk;
  void give_back(std::byte* memory);

  std::size_t chunk_count_;
  std::byte* mapping_ = nullptr;
  bool touched_ = false;
  std::mutex mutex_;
  std::condition_variable returned_;
  std::vector<std::byte*> free_;  // last returned first: its lines are the likeliest in cache
  bool stopped_ = false;
};

}  // namespace pollux::primary
