#include "primary/sync_sender.h"

#include <spdlog/spdlog.h>

#include <algorithm>
#include <utility>

#include "base/racy_reads.h"
#include "primary/parcels.h"

namespace pollux::primary {

using protocol::BackupId;
using vmm::Gfn;

static_assert(kSyncBlockSize == protocol::kDigestBlockBytes);

namespace {

using PageView = std::span<const std::byte, kPageSize>;

// The guest and its devices may write to the page meanwhile.
bool is_zero_now(PageView page) {
  const RacyReads racy;
  return is_zero(page);
}

void append_now(PageChunk& chunk, Gfn gfn, PageView page) {
  const RacyReads racy;
  chunk.append(gfn, page);
}

}  // namespace

SyncSender::SyncSender(const vmm::GuestMemory& memory, vmm::Backends& backends, PagePool& pool, EngineMailbox& mailbox,
                       Statistics& statistics, std::vector<SyncTarget> targets)
    : memory_(memory), backends_(backends), pool_(pool), mailbox_(mailbox), statistics_(statistics) {
  for (SyncTarget& target : targets) targets_.push_back({std::move(target), {}, 0});
}

bool SyncSender::abandoned() const {
  return mailbox_.stopping() || std::ranges::all_of(targets_, [&](const Target& target) {
           return mailbox_.is_dropped(target.to.backup);
         });
}

bool SyncSender::send_everything() {
  return compare_disks() && send_blocks() && send_pages(memory_.all_gfns(), Sending::kMayBeAbandoned) && wait_until_received();
}

bool SyncSender::send_round(const std::vector<Gfn>& pages, const std::vector<BlockRef>& blocks) {
  for (Target& target : targets_) target.blocks = blocks;
  return send_blocks() && send_pages(pages, Sending::kMayBeAbandoned) && wait_until_received();
}

void SyncSender::send_rest(const std::vector<Gfn>& pages, const std::vector<BlockRef>& blocks) {
  for (Target& target : targets_) target.blocks = blocks;
  (void)send_blocks();
  (void)send_pages(pages, Sending::kWhole);
}

void SyncSender::send_end(protocol::EpochId epoch, const std::shared_ptr<const Bytes>& state,
                          const std::function<void(BackupId)>& before_end) {
  for (const Target& target : targets_) {
    const protocol::SyncEnd end{epoch, pages_, zero_pages_, target.disk_extents};
    before_end(target.to.backup);
    target.to.shipper->push(state_parcels(end, state));
  }
}

void SyncSender::give_up(const std::string& reason) {
  for (const Target& target : targets_) {
    target.to.shipper->push(message_parcel(protocol::Goodbye{protocol::GoodbyeReason::kDropped, reason}));
    target.to.shipper->close_when_sent();
  }
}

// Else the little rest would queue behind all that is still on its way, with the guest's outputs held.
bool SyncSender::wait_until_received() {
  mark_.number += 1;
  for (const Target& target : targets_) target.to.shipper->push(message_parcel(mark_));
  for (const Target& target : targets_) (void)mailbox_.wait_for_mark(target.to.backup, mark_);
  return !abandoned();
}

bool SyncSender::compare_disks() {
  for (Target& target : targets_) {
    for (std::uint32_t disk = 0; disk < backends_.disk_count(); ++disk) {
      if (!compare_disk(target, {disk})) spdlog::debug("full sync: backup {} is gone", to_string(target.to.backup));
    }
  }
  return !abandoned();
}

// Appends the blocks in which the backup's disk differs to target.blocks. False when the backup is gone.
bool SyncSender::compare_disk(Target& target, vmm::DiskIndex disk) {
  vmm::Image& image = backends_.disk(disk);
  const std::uint64_t blocks = (image.size() + kSyncBlockSize - 1) / kSyncBlockSize;
  // 4 MiB: a slow host digests them well within the silence timeout, and both sides work at the same time.
  constexpr std::uint64_t kBlocksPerRequest = 64;
  Bytes own(kSyncBlockSize);
  for (std::uint64_t first = 0; first < blocks; first += kBlocksPerRequest) {
    const std::uint64_t count = std::min(kBlocksPerRequest, blocks - first);
    const protocol::DiskDigestRequest request{{disk.value}, first, static_cast<std::uint32_t>(count)};
    target.to.shipper->push(message_parcel(request));
    std::vector<protocol::BlockDigest> own_digests(count);
    for (std::uint64_t i = 0; i < count; ++i) {
      const std::uint64_t offset = (first + i) * kSyncBlockSize;
      const MutableByteView block = MutableByteView(own).first(std::min(kSyncBlockSize, image.size() - offset));
      if (!image.read(offset, block)) throw UnreadableImage("cannot read " + image.path());
      own_digests[i] = protocol::digest_block(block);
    }
    const auto answer = mailbox_.wait_for_digests(target.to.backup);
    if (!answer) return false;
    if (answer->header.disk.value != disk.value || answer->header.first != first || answer->header.count != count) {
      spdlog::error("backup {} answered for other blocks than asked: disk compared as wholly different",
                    to_string(target.to.backup));
      own_digests.assign(count, {});
    }
    for (std::uint64_t i = 0; i < count; ++i) {
      const auto theirs = answer->digests.begin() + static_cast<std::ptrdiff_t>(i * protocol::kDigestBytes);
      const bool same = answer->header.count == count && std::equal(own_digests[i].begin(), own_digests[i].end(), theirs);
      if (!same) target.blocks.push_back({disk, first + i});
    }
  }
  return true;
}

// Reads pages while the guest runs: whatever changes meanwhile is dirty again and comes in a later round.
bool SyncSender::send_pages(const std::vector<Gfn>& gfns, Sending sending) {
  std::unique_ptr<PageChunk> chunk;
  std::vector<Gfn> zeros;
  for (const Gfn gfn : gfns) {
    if (is_zero_now(memory_.page(gfn))) {
      zeros.push_back(gfn);
      continue;
    }
    if (!chunk) {
      if (sending == Sending::kMayBeAbandoned && abandoned()) return false;
      chunk = pool_.acquire();
      if (!chunk) return false;
    }
    append_now(*chunk, gfn, memory_.page(gfn));
    if (chunk->full()) send_batch(make_batch(std::move(chunk)));
  }
  if (chunk) send_batch(make_batch(std::move(chunk)));
  // A page belongs to one kind only within a round, so the order between the two does not matter.
  for (auto& batch : make_zero_batches(zeros)) send_batch(std::move(batch));
  return !abandoned();
}

void SyncSender::send_batch(std::shared_ptr<const PageBatch> batch) {
  pages_ += batch->pages;
  zero_pages_ += batch->zero_pages;
  for (const Target& target : targets_) target.to.shipper->push(sync_pages_parcel(batch));
  statistics_.sync_progress((pages_ + zero_pages_) * kPageSize, memory_.size());
}

bool SyncSender::send_blocks() {
  constexpr std::size_t kBlocksPerMessage = protocol::kMaxBodyBytes / kSyncBlockSize;
  for (Target& target : targets_) {
    const std::vector<BlockRef> blocks = std::exchange(target.blocks, {});
    if (!blocks.empty()) {
      spdlog::info("full sync: {} disk blocks of {} KiB to backup {}", blocks.size(), kSyncBlockSize >> 10,
                   to_string(target.to.backup));
    }
    for (std::size_t i = 0; i < blocks.size();) {
      std::size_t end = i + 1;
      while (end < blocks.size() && end - i < kBlocksPerMessage && blocks[end].disk == blocks[i].disk) ++end;
      if (!target.to.shipper->wait_for_room()) break;
      send_block_run(target, std::span(blocks).subspan(i, end - i));
      i = end;
    }
  }
  return !abandoned();
}

// Blocks of one disk, one message.
void SyncSender::send_block_run(Target& target, std::span<const BlockRef> run) {
  vmm::Image& image = backends_.disk(run.front().disk);
  protocol::DiskBlocks message{{run.front().disk.value}, {}};
  auto data = std::make_shared<Bytes>(run.size() * kSyncBlockSize);
  std::size_t used = 0;
  for (const BlockRef& block : run) {
    const std::uint64_t offset = block.block * kSyncBlockSize;
    const std::uint64_t length = std::min(kSyncBlockSize, image.size() - offset);
    const MutableByteView into = MutableByteView(*data).subspan(used, length);
    if (!image.read(offset, into)) throw UnreadableImage("cannot read " + image.path());
    const bool zero = is_zero(into);
    message.extents.push_back({offset, length, zero});
    if (!zero) used += length;
  }
  target.disk_extents += message.extents.size();
  const ByteView body = ByteView(*data).first(used);
  target.to.shipper->push({std::move(message), body.empty() ? std::vector<ByteView>{} : std::vector{body}, data});
}

}  // namespace pollux::primary
