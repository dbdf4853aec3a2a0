#include "primary/full_sync.h"

#include <spdlog/spdlog.h>

#include <utility>

namespace pollux::primary {

using protocol::BackupId;
using vmm::Gfn;

FullSync::FullSync(vmm::Machine& machine, vmm::Backends& backends, HoldingGate& gate, PagePool& pool,
                   EngineMailbox& mailbox, Statistics& statistics, std::vector<SyncTarget> targets,
                   protocol::EpochId end, Afterwards afterwards, std::function<void(BackupId)> before_end)
    : machine_(machine),
      gate_(gate),
      end_(end),
      stands_still_(machine.paused()),
      afterwards_(afterwards),
      before_end_(std::move(before_end)),
      sender_(machine.memory(), backends, pool, mailbox, statistics, std::move(targets)) {}

FullSync::~FullSync() { gate_.track_writes(nullptr); }

bool FullSync::run() {
  bool done = false;
  try {
    done = sync();
  } catch (const UnreadableImage& error) {
    spdlog::error("full sync: {}: the guest goes on, its backups are given up", error.what());
    sender_.give_up(error.what());
  }
  if (!done) stop_tracking();
  return done;
}

bool FullSync::sync() {
  // Tracking begins before anything is read, so that whatever changes after it was read is sent again.
  gate_.track_writes(&written_blocks_);
  pause();
  machine_.start_dirty_tracking();
  resume();
  if (!sender_.send_everything()) return false;
  for (unsigned round = 1;; ++round) {
    pause();
    const std::vector<Gfn> dirty = machine_.harvest_dirty_pages();
    const bool little = dirty.size() <= SyncSender::kFinalPages && written_blocks_.size() <= SyncSender::kFinalBlocks;
    if (little || round == SyncSender::kMaxRounds) {
      final_pause(dirty);
      return true;
    }
    resume();
    spdlog::debug("full sync: round {}: {} pages dirty", round, dirty.size());
    if (!sender_.send_round(dirty, written_blocks_.take())) return false;
  }
}

// The machine is paused.
void FullSync::final_pause(const std::vector<Gfn>& dirty) {
  // First: a deterministic machine performs what is under way at its disks, and counts it as done.
  const auto state = std::make_shared<const Bytes>(machine_.save());
  gate_.hold();
  const std::vector<BlockRef> written = written_blocks_.take();
  gate_.track_writes(nullptr);
  try {
    sender_.send_rest(dirty, written);
  } catch (const UnreadableImage&) {
    gate_.pass();
    throw;
  }
  if (afterwards_ == Afterwards::kRun) resume();
  sender_.send_end(end_, state, before_end_);
}

void FullSync::stop_tracking() {
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

}  // namespace pollux::primary
