#include "primary/epoch_engine.h"

#include <spdlog/spdlog.h>

#include <algorithm>
#include <utility>

#include "base/error.h"
#include "primary/parcels.h"

namespace pollux::primary {

using namespace std::chrono_literals;
using protocol::BackupId;
using protocol::EpochId;
using vmm::Gfn;
using vmm::MachineExit;

namespace {
// How long the engine waits at a time before it looks at its mailbox again.
constexpr auto kPollInterval = 20ms;
// For the last epoch before a handover: the guest stands still meanwhile.
constexpr auto kCommitTimeout = 5s;
// For the last epoch of a joiner's sync; later than this it is tried again with another.
constexpr auto kJoinTimeout = 200ms;
}  // namespace

EpochEngine::EpochEngine(vmm::Machine& machine, vmm::Backends& backends, HoldingGate& gate, PagePool& pool,
                         PagePool& joiner_pool, EngineMailbox& mailbox, Statistics& statistics, Replica replica, Options options)
    : machine_(machine),
      backends_(backends),
      gate_(gate),
      pool_(pool),
      joiner_pool_(joiner_pool),
      mailbox_(mailbox),
      statistics_(statistics),
      replica_(std::move(replica)),
      options_(std::move(options)),
      closed_(options_.closed) {}

MachineExit EpochEngine::run() {
  machine_.resume();
  if (mailbox_.is_unprotected()) statistics_.set_protection("unprotected");
  std::optional<MachineExit> exit;
  while (!exit) exit = protected_ ? run_protected() : run_unprotected();
  if (exit->reason != vmm::ExitReason::kHostFailed && !handed_over_) finish();
  mailbox_.close();
  return *exit;
}

// Until the machine ends or a full sync has made it protected.
std::optional<MachineExit> EpochEngine::run_unprotected() {
  if (auto exit = wait(kPollInterval)) return exit;
  if (mailbox_.is_held()) {
    pause();
    mailbox_.set_standing(true);
  } else if (machine_.paused()) {
    let_run();
  }
  if (mailbox_.requested_handover()) {
    mailbox_.handover_ended({HandoverOutcome::Kind::kRefused, "the machine is unprotected"});
  }
  std::vector<SyncTarget> backups = mailbox_.take_sync_requests();
  if (!backups.empty()) sync(std::move(backups));
  return std::nullopt;
}

void EpochEngine::sync(std::vector<SyncTarget> backups) {
  pool_.touch();
  statistics_.set_protection("syncing");
  FullSync full_sync(machine_, backends_, gate_, pool_, mailbox_, statistics_, backups, closed_,
                     options_.deterministic ? FullSync::Afterwards::kStandStill : FullSync::Afterwards::kRun,
                     [this](BackupId backup) {
                       replica_.post_and_wait(protocol::primary::SyncFinished{backup, closed_});
                     });
  protected_ = full_sync.run();
  if (protected_) backups_ = std::move(backups);
  if (protected_ && options_.deterministic != nullptr) {
    mailbox_.executed(closed_);
    machine_.stop_dirty_tracking();
    recorder_ = std::make_unique<LockstepRecorder>(*options_.deterministic, mailbox_, closed_);
  }
  statistics_.set_protection(protected_ ? "protected" : "unprotected");
}

// One epoch, or the loss of protection.
std::optional<MachineExit> EpochEngine::run_protected() {
  if (in_lockstep()) return run_lockstep();
  if (auto exit = run_epoch()) return exit;
  // Too much is under way: the epoch grows until the oldest is committed.
  while (closed_.value >= mailbox_.committed().value + kMaxEpochsInFlight && !mailbox_.is_unprotected()) {
    const EpochId oldest{closed_.value - kMaxEpochsInFlight + 1};
    if (mailbox_.wait_for_commit(oldest, kPollInterval)) break;
    if (auto exit = wait(0ms)) return exit;
    // While nobody knows who leads, nothing that the guest does may ever count.
    if (gate_.is_over_limit() || mailbox_.is_claiming()) hold_guest(oldest);
  }
  if (mailbox_.is_unprotected()) {
    lose_protection();
  } else if (const auto to = mailbox_.requested_handover()) {
    return hand_over(*to);
  } else if (!stands_still()) {
    tend_joiner();
    if (joiner_ && joiner_->is_nearly_done()) {
      finish_joiner();
    } else {
      close_epoch();
      if (gate_.is_over_limit()) hold_guest(closed_);
    }
  }
  return std::nullopt;
}

// Lets the guest run for the length of an epoch, or until it has emitted more than may be held: nothing refuses what it
// writes to a console.
std::optional<MachineExit> EpochEngine::run_epoch() {
  const auto end = Clock::now() + options_.epoch_length;
  std::chrono::milliseconds left = options_.epoch_length;
  do {
    if (auto exit = wait(std::min<std::chrono::milliseconds>(left, kPollInterval))) return exit;
    left = std::chrono::ceil<std::chrono::milliseconds>(end - Clock::now());
  } while (left > 0ms && !gate_.is_over_limit());
  return std::nullopt;
}

// The state machine lets one join at a time.
void EpochEngine::tend_joiner() {
  if (joiner_ && joiner_->has_failed()) end_joiner();
  std::vector<SyncTarget> joiners = mailbox_.take_sync_requests();
  if (joiners.empty()) return;
  POLLUX_ASSERT(joiners.size() == 1);
  end_joiner();  // dropped, or no other would have been let in
  if (in_lockstep()) machine_.start_dirty_tracking();
  joiner_ = std::make_unique<JoinerSync>(machine_.memory(), backends_, gate_, joiner_pool_, mailbox_, statistics_, joiners.front());
}

void EpochEngine::end_joiner() {
  joiner_.reset();
  if (in_lockstep()) machine_.stop_dirty_tracking();
}

// The guest stands still from the end of this epoch until the others have committed it and the joiner's rest is queued.
void EpochEngine::finish_joiner() {
  const auto state = in_lockstep() ? close_lockstep_epoch(State::kSaved) : close_epoch(Then::kStandStill);
  if (!commit_all(kJoinTimeout)) {
    joiner_tried_at_ = closed_;
    return let_run();
  }
  gate_.settle();
  const bool sent = joiner_->send_rest();
  let_run();
  std::erase_if(backups_, [](const SyncTarget& backup) { return !backup.shipper->link().is_up(); });
  if (sent) {
    joiner_->send_end(closed_, state, [this](BackupId backup) {
      replica_.post_and_wait(protocol::primary::SyncFinished{backup, closed_});
    });
    backups_.push_back(joiner_->joiner());
  }
  end_joiner();
}

void EpochEngine::pause() {
  if (!machine_.paused()) machine_.pause();
}

void EpochEngine::let_run() {
  const bool held = mailbox_.is_held();
  if (!held && !in_lockstep()) machine_.resume();
  mailbox_.set_standing(held);
}

// Since its last epoch was closed: then there is nothing to close. No longer held, it runs again.
bool EpochEngine::stands_still() {
  if (!machine_.paused()) return false;
  if (!mailbox_.is_held()) let_run();
  return true;
}

// The last epoch here: its outputs leave, and the backup is asked to go on from its end. Until the arbiter has given the
// term to somebody the guest stands still.
std::optional<MachineExit> EpochEngine::hand_over(BackupId to) {
  using Kind = HandoverOutcome::Kind;
  mailbox_.handover_began(Clock::now());
  if (!machine_.paused()) close_epoch(Then::kStandStill);
  if (!commit_all(kCommitTimeout)) {
    mailbox_.handover_ended({Kind::kRefused, "not everything could be committed: the guest runs on"});
    let_run();
    return std::nullopt;
  }
  replica_.post(protocol::primary::HandOverTo{to});
  std::optional<HandoverOutcome> outcome;
  while (!(outcome = mailbox_.handover_outcome())) {
    if (mailbox_.failed()) return end_by_handover("the machine was being handed over when this host failed");
    if (mailbox_.stopping()) return end_by_handover("stopped while the machine was being handed over");
    if (options_.on_turn) options_.on_turn(machine_);
    mailbox_.wait_for_news(kPollInterval);
  }
  if (outcome->kind == Kind::kHandedOver) return end_by_handover("handed over");
  let_run();
  return std::nullopt;
}

// Nothing of this machine leaves any more, neither what a disk under way emitted after its last epoch nor anything else.
MachineExit EpochEngine::end_by_handover(const char* detail) {
  joiner_.reset();
  handed_over_ = true;
  return {vmm::ExitReason::kRequested, detail};
}

// Until every backup has acknowledged the last closed epoch, and its outputs have left. False: not within the timeout, or
// something else came between. The loss of the last backup commits it, too, but then nothing has left yet: that is
// lose_protection()'s to do.
bool EpochEngine::commit_all(std::chrono::nanoseconds timeout) {
  const auto deadline = Clock::now() + timeout;
  while (!mailbox_.wait_for_commit(closed_, kPollInterval)) {
    const bool late = Clock::now() >= deadline;
    if (mailbox_.is_unprotected() || mailbox_.stopping() || late) return false;
  }
  return !mailbox_.is_unprotected();
}

// It emits faster than epochs are committed, even lengthened ones, or the arbiter is being asked who leads: it stands still
// until the oldest is committed.
void EpochEngine::hold_guest(EpochId oldest) {
  const bool held = machine_.paused();
  pause();
  while (!mailbox_.wait_for_commit(oldest, kPollInterval) && !mailbox_.is_unprotected() && !mailbox_.stopping()) {
  }
  if (!held) machine_.resume();  // one that is to be held meanwhile is so at the end of an epoch
}

std::optional<MachineExit> EpochEngine::wait(std::chrono::nanoseconds time) {
  if (mailbox_.stopping()) machine_.request_exit();
  if (options_.on_turn) options_.on_turn(machine_);
  return machine_.wait_for_exit(std::chrono::duration_cast<std::chrono::milliseconds>(time));
}

std::shared_ptr<const Bytes> EpochEngine::close_epoch(Then then) {
  const EpochId epoch = closed_.next();
  pages_ = zero_pages_ = bytes_ = 0;
  open_shipped_ = false;
  const Clock::time_point paused_at = Clock::now();
  pause();
  const std::vector<Gfn> dirty = machine_.harvest_dirty_pages();
  std::vector<std::unique_ptr<PageChunk>> chunks = copy_pages(dirty);
  const auto state = std::make_shared<const Bytes>(machine_.save());
  const std::shared_ptr<const HeldEpoch> held = gate_.seal(epoch);
  if (then == Then::kRun) let_run();
  const auto pause_time = Clock::now() - paused_at;

  for (auto& chunk : chunks) ship_pages(std::move(chunk));
  std::uint64_t disk_operations = 0;
  for (const Parcel& parcel : epoch_disk_parcels(held)) {
    disk_operations += std::get<protocol::EpochDiskWrites>(parcel.message).operations.size();
    ship_in_epoch(parcel);
  }
  {
    const std::lock_guard lock(in_flight_mutex_);
    in_flight_.push_back({epoch, paused_at});
  }
  const protocol::EpochClose close{epoch, pages_, zero_pages_, disk_operations, held->flushed};
  // Before the close is on its way: its acknowledgement must find the epoch closed.
  replica_.post_quietly(protocol::primary::EpochClosed{epoch, held->flushed});
  for (const Parcel& parcel : state_parcels(close, state)) ship_in_epoch(parcel);
  closed_ = epoch;
  statistics_.epoch_closed({epoch, pause_time, dirty.size(), bytes_});
  if (joiner_) joiner_->changed(dirty);
  return state;
}

// Copies into the pool. When that is exhausted, the full chunks go out and the guest is held until one returns.
std::vector<std::unique_ptr<PageChunk>> EpochEngine::copy_pages(const std::vector<Gfn>& gfns) {
  const vmm::GuestMemory& memory = machine_.memory();
  std::vector<std::unique_ptr<PageChunk>> chunks;
  for (const Gfn gfn : gfns) {
    if (chunks.empty() || chunks.back()->full()) {
      std::unique_ptr<PageChunk> next = pool_.try_acquire();
      if (!next) {
        for (auto& chunk : chunks) ship_pages(std::move(chunk));
        chunks.clear();
        next = pool_.acquire();
      }
      POLLUX_ASSERT(next != nullptr);
      chunks.push_back(std::move(next));
    }
    chunks.back()->append(gfn, memory.page(gfn));
  }
  return chunks;
}

void EpochEngine::ship_pages(std::unique_ptr<const PageChunk> chunk) {
  const auto batch = make_batch(std::move(chunk));
  pages_ += batch->pages;
  zero_pages_ += batch->zero_pages;
  ship_in_epoch(epoch_pages_parcel(closed_.next(), batch));
}

// Nothing is shipped before the resume, unless the pool is exhausted: the shippers, the links' threads and the backups'
// answers would take processors from the pause.
void EpochEngine::ship_in_epoch(const Parcel& parcel) {
  if (!std::exchange(open_shipped_, true)) ship(message_parcel(protocol::EpochOpen{closed_.next()}));
  ship(parcel);
}

void EpochEngine::ship(const Parcel& parcel) {
  bytes_ += parcel.body_bytes();
  for (const SyncTarget& backup : backups_) backup.shipper->push(parcel);
}

void EpochEngine::committed(EpochId epoch, bool durable_first) {
  if (!durable_first) gate_.release(epoch);
  const auto now = Clock::now();
  {
    const std::lock_guard lock(in_flight_mutex_);
    while (!in_flight_.empty() && in_flight_.front().epoch <= epoch) {
      statistics_.epoch_committed(in_flight_.front().epoch, now - in_flight_.front().at);
      in_flight_.pop_front();
    }
  }
  mailbox_.committed(epoch);
}

void EpochEngine::lose_protection() {
  joiner_.reset();  // half an image vouches for nothing
  send_batch();  // the state machine goes on counting epochs
  recorder_.reset();
  // The guest stands still meanwhile: one that goes on emitting would never let the gate come to an end.
  pause();
  machine_.stop_dirty_tracking();
  gate_.pass();
  let_run();
  protected_ = false;
  backups_.clear();
  statistics_.set_protection("unprotected");
}

// The guest ended: its last outputs are committed like any other before they leave.
void EpochEngine::finish() {
  joiner_.reset();
  if (in_lockstep() && recorder_->under_way() && end_lockstep_epoch()) return;  // stuck, what it emitted since is nothing
  if (protected_) {
    if (!in_lockstep()) close_epoch();
    send_batch();
    while (!mailbox_.wait_for_commit(closed_, kPollInterval) && !mailbox_.is_unprotected() && !mailbox_.failed()) {
      if (mailbox_.stopping() && mailbox_.is_undecided()) {
        given_up_ = true;
        break;
      }
      // Backups are healed at the end of an epoch: here is another one.
      if (in_lockstep() && may_heal_now() && end_lockstep_epoch()) return;
      send_batch();
    }
  }
  recorder_.reset();
  pause();
  if (mailbox_.failed() || given_up_) return;  // what is held goes nowhere
  gate_.pass();
  gate_.drain();
}

}  // namespace pollux::primary
