#include "primary/page_batch.h"

#include <utility>

namespace pollux::primary {
namespace {

// Adds one page behind the last run where it continues it.
void add_page(PageBatch& batch, vmm::Gfn gfn, bool zero) {
  (zero ? batch.zero_pages : batch.pages) += 1;
  if (!batch.runs.empty()) {
    protocol::PageRun& last = batch.runs.back();
    const bool continues = last.zero == zero && last.first.value + last.count == gfn.value;
    if (continues && last.count < protocol::kMaxPagesPerRun) {
      ++last.count;
      return;
    }
  }
  batch.runs.push_back({{gfn.value}, 1, zero});
}

void add_body(PageBatch& batch, ByteView page) {
  if (!batch.body.empty()) {
    ByteView& last = batch.body.back();
    if (last.data() + last.size() == page.data()) {
      last = ByteView(last.data(), last.size() + page.size());
      return;
    }
  }
  batch.body.push_back(page);
}

}  // namespace

std::shared_ptr<const PageBatch> make_batch(std::unique_ptr<const PageChunk> chunk) {
  static_assert(kPagesPerChunk <= protocol::kMaxPagesPerMessage && kPagesPerChunk <= protocol::kMaxRunsPerMessage);
  auto batch = std::make_shared<PageBatch>();
  for (std::size_t i = 0; i < chunk->gfns().size(); ++i) {
    const ByteView page = chunk->page(i);
    const bool zero = is_zero(page);
    add_page(*batch, chunk->gfns()[i], zero);
    if (!zero) add_body(*batch, page);
  }
  batch->chunk = std::move(chunk);
  return batch;
}

std::vector<std::shared_ptr<const PageBatch>> make_zero_batches(const std::vector<vmm::Gfn>& gfns) {
  std::vector<std::shared_ptr<const PageBatch>> batches;
  auto batch = std::make_shared<PageBatch>();
  for (const vmm::Gfn gfn : gfns) {
    if (batch->runs.size() == protocol::kMaxRunsPerMessage) {
      batches.push_back(std::exchange(batch, std::make_shared<PageBatch>()));
    }
    add_page(*batch, gfn, true);
  }
  if (!batch->runs.empty()) batches.push_back(std::move(batch));
  return batches;
}

}  // namespace pollux::primary
