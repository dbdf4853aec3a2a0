#include "primary/joiner_sync.h"

#include <spdlog/spdlog.h>

#include <algorithm>
#include <utility>

#include "base/thread_name.h"

namespace pollux::primary {

using vmm::Gfn;

namespace {
void forget_repeated(std::vector<Gfn>& pages) {
  std::ranges::sort(pages);
  pages.erase(std::ranges::unique(pages).begin(), pages.end());
}
}  // namespace

JoinerSync::JoinerSync(const vmm::GuestMemory& memory, vmm::Backends& backends, HoldingGate& gate, PagePool& pool,
                       EngineMailbox& mailbox, Statistics& statistics, SyncTarget joiner)
    : gate_(gate),
      pool_(pool),
      mailbox_(mailbox),
      joiner_(std::move(joiner)),
      memory_pages_(memory.size() >> kPageShift),
      sender_(memory, backends, pool, mailbox, statistics, {joiner_}) {
  gate_.track_writes(&written_blocks_);
  thread_ = std::thread([this] { run(); });
}

JoinerSync::~JoinerSync() {
  if (stage_ == Stage::kSending || stage_ == Stage::kNearlyDone) {
    joiner_.shipper->abort();  // which lets the thread go, wherever it waits
    mailbox_.dropped(joiner_.backup);
  }
  if (thread_.joinable()) thread_.join();
  gate_.track_writes(nullptr);
}

void JoinerSync::changed(const std::vector<Gfn>& pages) {
  const std::lock_guard lock(mutex_);
  if (changed_.size() + pages.size() > 2 * memory_pages_) forget_repeated(changed_);
  changed_.insert(changed_.end(), pages.begin(), pages.end());
}

std::vector<Gfn> JoinerSync::take_changed() {
  std::vector<Gfn> pages;
  {
    const std::lock_guard lock(mutex_);
    pages.swap(changed_);
  }
  forget_repeated(pages);
  return pages;
}

void JoinerSync::run() {
  name_this_thread("joiner sync");
  pool_.touch();
  try {
    stage_ = send_until_little_is_left() ? Stage::kNearlyDone : Stage::kFailed;
  } catch (const UnreadableImage& error) {
    spdlog::error("full sync: {}: backup {} is given up", error.what(), to_string(joiner_.backup));
    sender_.give_up(error.what());
    stage_ = Stage::kFailed;
  }
}

bool JoinerSync::send_until_little_is_left() {
  if (!sender_.send_everything()) return false;
  for (unsigned round = 1; round <= SyncSender::kMaxRounds; ++round) {
    const std::vector<Gfn> pages = take_changed();
    const std::vector<BlockRef> blocks = written_blocks_.take();
    spdlog::debug("full sync of a joiner: round {}: {} pages changed", round, pages.size());
    if (!sender_.send_round(pages, blocks)) return false;
    // What was sent by this round was all of it when the round began, and the next one is no larger.
    if (pages.size() <= SyncSender::kFinalPages && blocks.size() <= SyncSender::kFinalBlocks) break;
  }
  return true;
}

bool JoinerSync::send_rest() {
  POLLUX_ASSERT(is_nearly_done());
  thread_.join();
  try {
    sender_.send_rest(take_changed(), written_blocks_.take());
  } catch (const UnreadableImage& error) {
    spdlog::error("full sync: {}: backup {} is given up", error.what(), to_string(joiner_.backup));
    sender_.give_up(error.what());
    stage_ = Stage::kFailed;
    return false;
  }
  return true;
}

void JoinerSync::send_end(protocol::EpochId epoch, const std::shared_ptr<const Bytes>& state,
                          const std::function<void(protocol::BackupId)>& before_end) {
  POLLUX_ASSERT(is_nearly_done() && !thread_.joinable());
  sender_.send_end(epoch, state, before_end);
  stage_ = Stage::kFinished;
}

}  // namespace pollux::primary
