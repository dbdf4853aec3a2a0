#include "primary/full_sync.h"

#include <spdlog/spdlog.h>

#include <algorithm>
#include <utility>

#include "base/error.h"
#include "primary/parcels.h"

namespace pollux::primary {

using protocol::BackupId;
using vmm::Gfn;

static_assert(kSyncBlockSize == protocol::kDigestBlockBytes);

namespace {

// No replica can be made of this image; the guest, which may never read there, is not to suffer for it.
class UnreadableImage : public Error {
 public:
  using Error::Error;
};

}  // namespace

FullSync::FullSync(vmm::Machine& machine, vmm::Backends& backends, HoldingGate& gate, PagePool& pool,
                   EngineMailbox& mailbox, Statistics& statistics, std::vector<SyncTarget> targets,
                   protocol::EpochId end, Afterwards afterwards, std::function<void(BackupId)> before_end)
    : machine_(machine),
      backends_(backends),
      gate_(gate),
      pool_(pool),
      mailbox_(mailbox),
      statistics_(statistics),
      end_(end),
      stands_still_(machine.paused()),
      afterwards_(afterwards),
      before_end_(std::move(before_end)) {
  for (SyncTarget& target : targets) targets_.push_back({std::move(target), {}, 0});
}

FullSync::~FullSync() { gate_.track_writes(nullptr); }

bool FullSync::abandoned() const {
  return mailbox_.stopping() || std::all_of(targets_.begin(), targets_.end(), [&](const Target& target) {
           return mailbox_.is_dropped(target.to.backup);
         });
}

bool FullSync::run() {
  try {
    return sync();
  } catch (const UnreadableImage& error) {
    spdlog::error("full sync: {}: the guest goes on, its backups are given up", error.what());
    for (const Target& target : targets_) {
      target.to.shipper->push(message_parcel(protocol::Goodbye{protocol::GoodbyeReason::kDropped, error.what()}));
      target.to.shipper->close_when_sent();
    }
    give_up();
    return false;
  }
}

bool FullSync::sync() {
  // Tracking begins before anything is read, so that whatever changes after it was read is sent again.
  gate_.track_writes(&written_blocks_);
  pause();
  machine_.start_dirty_tracking();
  resume();
  if (!compare_disks() || !send_blocks() || !send_all_memory() || !wait_until_received()) {
    give_up();
    return false;
  }
  for (unsigned round = 1;; ++round) {
    pause();
    std::vector<Gfn> dirty = machine_.harvest_dirty_pages();
    const bool little = dirty.size() <= kFinalPages && written_blocks_.size() <= kFinalBlocks;
    if (little || round == kMaxRounds) {
      final_pause(std::move(dirty));
      return true;
    }
    resume();
    spdlog::debug("full sync: round {}: {} pages dirty", round, dirty.size());
    const std::vector<BlockRef> written = written_blocks_.take();
    for (Target& target : targets_) target.blocks = written;
    if (!send_blocks() || !send_pages(dirty) || !wait_until_received()) {
      give_up();
      return false;
    }
  }
}

// Else the last pause's little rest would queue behind all that is still on its way, with the guest's outputs held.
bool FullSync::wait_until_received() {
  mark_.number += 1;
  for (const Target& target : targets_) target.to.shipper->push(message_parcel(mark_));
  for (const Target& target : targets_) (void)mailbox_.wait_for_mark(target.to.backup, mark_);
  return !abandoned();
}

void FullSync::give_up() {
  gate_.track_writes(nullptr);
  pause();
  machine_.stop_dirty_tracking();
  resume();
}

void FullSync::pause() {
  if (!machine_.paused()) machine_.pause();
}

void FullSync::resume() {
  if (!stands_still_) machine_.resume();
}

bool FullSync::compare_disks() {
  for (Target& target : targets_) {
    for (std::uint32_t disk = 0; disk < backends_.disk_count(); ++disk) {
      if (!compare_disk(target, {disk})) spdlog::debug("full sync: backup {} is gone", to_string(target.to.backup));
    }
  }
  return !abandoned();
}

// Appends the blocks in which the backup's disk differs to target.blocks. False when the backup is gone.
bool FullSync::compare_disk(Target& target, vmm::DiskIndex disk) {
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

bool FullSync::send_all_memory() { return send_pages(machine_.memory().all_gfns()); }

// Reads pages while the guest runs: whatever changes meanwhile is dirty again and comes in a later round.
bool FullSync::send_pages(const std::vector<Gfn>& gfns, Sending sending) {
  const vmm::GuestMemory& memory = machine_.memory();
  std::unique_ptr<PageChunk> chunk;
  std::vector<Gfn> zeros;
  for (const Gfn gfn : gfns) {
    if (is_zero(memory.page(gfn))) {
      zeros.push_back(gfn);
      continue;
    }
    if (!chunk) {
      if (sending == Sending::kMayBeAbandoned && abandoned()) return false;
      chunk = pool_.acquire();
      if (!chunk) return false;
    }
    chunk->append(gfn, memory.page(gfn));
    if (chunk->full()) send_batch(make_batch(std::move(chunk)));
  }
  if (chunk) send_batch(make_batch(std::move(chunk)));
  // A page belongs to one kind only within a round, so the order between the two does not matter.
  for (auto& batch : make_zero_batches(zeros)) send_batch(std::move(batch));
  return !abandoned();
}

void FullSync::send_batch(std::shared_ptr<const PageBatch> batch) {
  pages_ += batch->pages;
  zero_pages_ += batch->zero_pages;
  for (const Target& target : targets_) target.to.shipper->push(sync_pages_parcel(batch));
  statistics_.sync_progress((pages_ + zero_pages_) * kPageSize, machine_.memory().size());
}

bool FullSync::send_blocks() {
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
void FullSync::send_block_run(Target& target, std::span<const BlockRef> run) {
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

// The machine is paused.
void FullSync::final_pause(std::vector<Gfn> dirty) {
  // First: a deterministic machine performs what is under way at its disks, and counts it as done.
  const auto state = std::make_shared<const Bytes>(machine_.save());
  gate_.hold();
  const std::vector<BlockRef> written = written_blocks_.take();
  gate_.track_writes(nullptr);
  for (Target& target : targets_) target.blocks = written;
  try {
    (void)send_blocks();
  } catch (const UnreadableImage&) {
    gate_.pass();
    throw;
  }
  // Whole, whatever happens meanwhile: what SyncEnd speaks for must not lack a page.
  (void)send_pages(dirty, Sending::kWhole);
  if (afterwards_ == Afterwards::kRun) resume();
  for (const Target& target : targets_) {
    const protocol::SyncEnd end{end_, pages_, zero_pages_, target.disk_extents,
                                static_cast<std::uint32_t>(state->size())};
    before_end_(target.to.backup);
    target.to.shipper->push(state_parcel(end, state));
  }
}

}  // namespace pollux::primary
