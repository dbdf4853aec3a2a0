// Pages on their way to the backups: one message's worth, shared by all of them.
#pragma once

#include <memory>
#include <vector>

#include "base/bytes.h"
#include "primary/page_pool.h"
#include "protocol/message.h"

namespace pollux::primary {

// What a SyncPages or EpochPages message says. `body` points into `chunk`; immutable once shared.
struct PageBatch {
  std::vector<protocol::PageRun> runs;
  std::vector<ByteView> body;
  std::uint64_t pages = 0;       // with data
  std::uint64_t zero_pages = 0;
  std::unique_ptr<const PageChunk> chunk;  // may be empty: zero pages only

  [[nodiscard]] std::uint64_t body_bytes() const { return pages * kPageSize; }
};

// Finds the zero pages among copied pages (which need not be sent) and joins neighbours into runs.
[[nodiscard]] std::shared_ptr<const PageBatch> make_batch(std::unique_ptr<const PageChunk> chunk);

// Zero pages that were never copied, as batches of runs: ascending frame numbers.
[[nodiscard]] std::vector<std::shared_ptr<const PageBatch>> make_zero_batches(const std::vector<vmm::Gfn>& gfns);

}  // namespace pollux::primary
