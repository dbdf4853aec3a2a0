// The epoch engine in lockstep.
#include <spdlog/spdlog.h>

#include <algorithm>
#include <iterator>
#include <utility>

#include "base/error.h"
#include "primary/epoch_engine.h"
#include "primary/parcels.h"
#include "vmm/deterministic/deterministic_devices.h"

namespace pollux::primary {

using namespace std::chrono_literals;
using protocol::EpochId;
using vmm::Gfn;
using vmm::MachineExit;

namespace {

constexpr auto kPollInterval = 20ms;  // of conditions that the mailbox does not announce
constexpr auto kLongestUnsent = 5ms;
constexpr const char* kStuck = "the guest does not end its epochs";

static_assert(vmm::kMaxEpochInputsBytes <= protocol::kMaxInputBytesPerEpoch);
static_assert(vmm::kMaxDeterministicStateBytes <= protocol::kMaxStateBytes);

}  // namespace

// Runs one epoch, or a part of one; returns early when protection was lost.
std::optional<MachineExit> EpochEngine::run_lockstep() {
  if (auto exit = wait(0ms)) return exit;
  if (!recorder_->under_way()) {
    if (auto exit = wait_between_epochs()) return exit;
    if (!in_lockstep()) return std::nullopt;  // protection was lost
  }
  switch (recorder_->run(options_.lockstep.epoch_length)) {
    case LockstepRecorder::Ran::kStopped:
      send_batch();  // the epoch takes longer than the one before, so what was to go out with it does not wait any more
      return std::nullopt;
    case LockstepRecorder::Ran::kStuck:
      return MachineExit{vmm::ExitReason::kCrash, kStuck};
    case LockstepRecorder::Ran::kEpochEnd: break;
  }
  const auto& exit = options_.deterministic->exit();
  if (exit && exit->reason == vmm::ExitReason::kHostFailed) return exit;
  if (may_finish_joiner()) {
    finish_joiner();
  } else {
    close_lockstep_epoch();
  }
  return std::nullopt;
}

// The guest stands still until the epoch that ends the sync is committed, so it is tried only when commits are quick: not while
// a backup is to be healed, nor before the epoch of the last attempt is committed.
bool EpochEngine::may_finish_joiner() const {
  return joiner_ && joiner_->is_nearly_done() && !mailbox_.has_heals() && mailbox_.committed() >= joiner_tried_at_;
}

// The guest stands at an epoch's end: orders, joiners and the loss of protection are seen to, and the backups waited for as long
// as the rules demand.
std::optional<MachineExit> EpochEngine::wait_between_epochs() {
  said_awaited_ = nullptr;
  awaited_since_ = Clock::now();
  for (;;) {
    recorder_->forget(mailbox_.executed());
    if (mailbox_.is_unprotected()) {
      lose_protection();
      return std::nullopt;
    }
    tend_joiner();
    if (const auto to = mailbox_.requested_handover()) {
      send_batch();
      if (auto exit = hand_over(*to)) return exit;
      continue;
    }
    if (mailbox_.is_held()) {
      send_batch();
      for (const protocol::BackupId backup : mailbox_.heals()) say_heal_waits(backup);
      mailbox_.set_standing(true);
      mailbox_.wait_for_news(kPollInterval);
    } else if (const auto awaited = may_heal_now() ? std::nullopt : awaited_progress()) {
      send_batch();
      wait_for(*awaited);
    } else {
      mailbox_.set_standing(false);
      return std::nullopt;
    }
    if (auto exit = wait(0ms)) return exit;
  }
}

// The first thing that the guest must wait for; nothing: it may run.
std::optional<EpochEngine::Awaited> EpochEngine::awaited_progress() const {
  const std::uint64_t max_lag = options_.lockstep.max_lag;
  // At most max_lag - 1 before another is closed, and so max_lag after it.
  const EpochId oldest{closed_.value >= max_lag ? closed_.value - max_lag + 1 : 0};
  const EpochId none{0};
  const bool every = options_.lockstep.commit_rule == CommitRule::kEveryEpoch;
  const auto behind = [&](EpochId committed, EpochId executed) { return !mailbox_.has_progressed(committed, executed); };
  // Commits are what lets outputs out, and room for more.
  if (gate_.is_over_limit()) return Awaited{"its held outputs to leave", closed_, none};
  if (every && behind(closed_, none)) return Awaited{"the commit of its last epoch", closed_, none};
  if (behind(oldest, none)) return Awaited{"commits, --max-lag epochs behind", oldest, none};
  if (behind(none, oldest)) return Awaited{"a backup to execute, --max-lag epochs behind", none, oldest};
  if (recorder_->remembered_bytes() > options_.remembered_limit && behind(none, closed_)) {
    return Awaited{"backups to execute: what is kept to heal them with is as much as --staging allows", none, closed_};
  }
  return std::nullopt;
}

// An operator holds the guest, which ends no epoch meanwhile: said once for each divergence.
void EpochEngine::say_heal_waits(protocol::BackupId backup) {
  if (!heal_waits_said_.insert(backup).second) return;
  spdlog::warn("backup {}: diverged: healed when the guest runs again", to_string(backup));
}

// A heal takes the end of one more epoch, even while the guest waits for something else, which may be a commit that waits for the
// heal. But backups that diverge again and again must not lead to ever more epochs while a commit does not come for another
// reason. So each is healed at most once beyond max_lag: it has acknowledged more than is committed then, and is not what
// commits wait for.
bool EpochEngine::may_heal_now() const {
  const EpochId limit{mailbox_.committed().value + options_.lockstep.max_lag};
  if (closed_ < limit) return mailbox_.has_heals();
  return std::ranges::any_of(mailbox_.heals(), [&](protocol::BackupId backup) {
    const auto last = healed_at_.find(backup);
    return last == healed_at_.end() || last->second <= limit;
  });
}

// For a short time, after which the caller looks again. A wait that lasts is logged once.
void EpochEngine::wait_for(const Awaited& awaited) {
  constexpr auto kLasts = 1s;
  if (said_awaited_ != awaited.what && Clock::now() - awaited_since_ > kLasts) {
    spdlog::warn("the guest waits for {}", awaited.what);
    said_awaited_ = awaited.what;
  }
  if (mailbox_.has_heals()) {  // they wait, too: for the commit
    (void)mailbox_.wait_for_commit(mailbox_.committed().next(), kPollInterval);
  } else if (mailbox_.has_progressed(awaited.committed, awaited.executed)) {  // what was let out has not reached an image yet
    mailbox_.wait_for_news(1ms);
  } else {
    (void)mailbox_.wait_for_progress(awaited.committed, awaited.executed, kPollInterval);
  }
}

// Ends and closes the epoch under way, for a machine that ends. An exit: the guest is stuck.
std::optional<MachineExit> EpochEngine::end_lockstep_epoch() {
  for (;;) {
    switch (recorder_->run(options_.lockstep.epoch_length)) {
      case LockstepRecorder::Ran::kStopped: continue;
      case LockstepRecorder::Ran::kStuck: return MachineExit{vmm::ExitReason::kCrash, kStuck};
      case LockstepRecorder::Ran::kEpochEnd: close_lockstep_epoch(); return std::nullopt;
    }
  }
}

std::shared_ptr<const Bytes> EpochEngine::close_lockstep_epoch(State saved) {
  const EpochId epoch = closed_.next();
  const Clock::time_point ended_at = Clock::now();
  bytes_ = 0;
  recorder_->forget(mailbox_.executed());
  const std::vector<HealRequest> heals = mailbox_.take_heals();
  heal_waits_said_.clear();
  // Before the seal: what a disk performs for the sake of the state belongs to this epoch.
  std::shared_ptr<const Bytes> state;
  if (!heals.empty() || saved == State::kSaved) state = std::make_shared<const Bytes>(machine_.save());
  const std::shared_ptr<const HeldEpoch> held = gate_.seal(epoch);
  const LockstepRecorder::Record record = recorder_->take(held);
  {
    const std::lock_guard lock(in_flight_mutex_);
    in_flight_.push_back({epoch, ended_at});
    POLLUX_ASSERT(in_flight_.size() <= options_.lockstep.max_lag + protocol::kMaxBackups);
  }
  if (batch_.closed.empty()) batch_.since = ended_at;
  if (!heals.empty()) send_batch();
  for (const HealRequest& request : heals) batch_.closed.push_back(protocol::primary::HealBegun{request.backup, epoch});
  batch_.closed.push_back(protocol::primary::EpochClosed{epoch, held->flushed});
  std::ranges::move(input_parcels(record, held->flushed), std::back_inserter(batch_.parcels));
  if (state || !may_wait_in_batch(*held)) send_batch();
  for (const HealRequest& request : heals) ship_heal(request, state);
  closed_ = epoch;
  statistics_.epoch_closed({epoch, Clock::now() - ended_at, record.changed_pages, bytes_});
  statistics_.lockstep_epoch(closed_.value - mailbox_.executed().value);
  if (joiner_) joiner_->changed(machine_.harvest_dirty_pages());
  return state;
}

// Nobody waits for this epoch's commit, and the next one is expected to end before the oldest in the batch has waited too long.
bool EpochEngine::may_wait_in_batch(const HeldEpoch& held) const {
  if (options_.lockstep.commit_rule == CommitRule::kEveryEpoch || recorder_->guest_waits()) return false;
  const bool awaited = held.emitted_bytes > 0 || held.flushed;
  return !awaited && Clock::now() + recorder_->last_epoch_time() < batch_.since + kLongestUnsent;
}

// To every backup, but for one that gets a record that heals for this epoch.
void EpochEngine::send_batch() {
  if (batch_.closed.empty()) return;
  // Before a close is on its way: its acknowledgement must find the epoch closed.
  for (const protocol::primary::Event& event : batch_.closed) replica_.post_quietly(event);
  for (const SyncTarget& backup : backups_) {
    const auto healed = [&](const auto& event) {
      const auto* begun = std::get_if<protocol::primary::HealBegun>(&event);
      return begun != nullptr && begun->backup == backup.backup;
    };
    if (std::ranges::any_of(batch_.closed, healed)) continue;
    backup.shipper->push(batch_.parcels);
  }
  batch_ = {};
}

std::vector<Parcel> EpochEngine::input_parcels(const LockstepRecorder::Record& record, bool flushed) {
  const EpochId epoch = closed_.next();
  std::vector<Parcel> parcels{message_parcel(protocol::EpochOpen{epoch, protocol::RecordKind::kInputs})};
  std::ranges::move(epoch_inputs_parcels(epoch, record.inputs), std::back_inserter(parcels));
  std::ranges::move(epoch_digest_parcels(epoch, record.digest), std::back_inserter(parcels));
  parcels.push_back(message_parcel(protocol::EpochClose{.epoch = epoch,
                                                        .flushed = flushed,
                                                        .input_bytes = record.inputs->size(),
                                                        .digest_bytes = record.digest->size(),
                                                        .clock = record.clock}));
  for (const Parcel& parcel : parcels) bytes_ += parcel.body_bytes();
  return parcels;
}

// A record of pages, of this epoch and all that the backup has not executed.
void EpochEngine::ship_heal(const HealRequest& request, const std::shared_ptr<const Bytes>& state) {
  const auto backup = std::ranges::find(backups_, request.backup, &SyncTarget::backup);
  if (backup == backups_.end()) return;
  const EpochId epoch = closed_.next();
  std::erase_if(healed_at_, [&](const auto& entry) {  // who left since
    return std::ranges::find(backups_, entry.first, &SyncTarget::backup) == backups_.end();
  });
  healed_at_[request.backup] = epoch;
  Shipper& shipper = *backup->shipper;
  shipper.push(message_parcel(protocol::EpochOpen{epoch, protocol::RecordKind::kPages}));
  protocol::EpochClose close{.epoch = epoch, .flushed = true};
  const auto ship = [&](std::unique_ptr<PageChunk> chunk) {
    const auto batch = make_batch(std::move(chunk));
    close.pages += batch->pages;
    close.zero_pages += batch->zero_pages;
    shipper.push(epoch_pages_parcel(epoch, batch));
  };
  const std::vector<Gfn> pages = recorder_->pages_to_heal(request);
  const vmm::GuestMemory& memory = machine_.memory();
  std::unique_ptr<PageChunk> chunk;
  for (const Gfn gfn : pages) {
    if (chunk && chunk->full()) ship(std::move(chunk));
    if (!chunk) chunk = pool_.acquire();
    POLLUX_ASSERT(chunk != nullptr);
    chunk->append(gfn, memory.page(gfn));
  }
  if (chunk) ship(std::move(chunk));
  for (const auto& held : recorder_->held_since(request.epoch)) {
    for (const Parcel& parcel : epoch_disk_parcels(epoch, held)) {
      close.disk_operations += std::get<protocol::EpochDiskWrites>(parcel.message).operations.size();
      shipper.push(parcel);
    }
  }
  shipper.push(state_parcels(close, state));
  spdlog::warn("backup {}: diverged in epoch {}: healed with {} page(s) at the end of epoch {}",
               to_string(request.backup), request.epoch.value, pages.size(), epoch.value);
}

}  // namespace pollux::primary
