#include "protocol/primary_replica.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "base/error.h"
#include "protocol/overloaded.h"

namespace pollux::protocol {

using namespace primary;

static_assert(kMaxBackups <= kMaxMembers);

PrimaryReplica::PrimaryReplica(PrimaryConfig config)
    : config_(std::move(config)),
      mode_(config_.backups == 0 ? Mode::kUnprotected : Mode::kReplicating),
      term_(config_.hello.term),
      closed_(config_.closed),
      committed_(config_.closed),
      executed_(config_.closed),
      durable_(config_.closed),
      last_flush_(config_.closed) {
  POLLUX_ASSERT(config_.backups <= kMaxBackups);
  for (; next_backup_.value < config_.backups; ++next_backup_.value) backups_.emplace(next_backup_, Backup{});
  POLLUX_ASSERT(config_.timing.heartbeat_interval < config_.timing.silence_timeout);
  POLLUX_ASSERT(config_.timing.arbitration_retry > std::chrono::nanoseconds(0));
}

PrimaryReplica::Effects PrimaryReplica::step(const Event& event, TimePoint now) {
  now_ = now;
  effects_.clear();
  std::visit([this](const auto& alternative) { on(alternative); }, event);
  check_invariants();
  return std::exchange(effects_, {});
}

PrimaryReplica::Effects PrimaryReplica::receive(BackupId from, const Message& message, TimePoint now) {
  now_ = now;
  effects_.clear();
  if (Backup* peer = find(from); peer != nullptr && is_linked(*peer)) {
    peer->last_heard = now;
    std::visit([&](const auto& alternative) { on_message(from, alternative); }, message);
  }
  check_invariants();
  return std::exchange(effects_, {});
}

std::optional<TimePoint> PrimaryReplica::next_deadline() const {
  std::optional<TimePoint> deadline;
  if (claim_) deadline = claim_->retry_at;
  for (const auto& [id, backup] : backups_) {
    if (!is_linked(backup)) continue;
    const TimePoint own = std::min(backup.next_heartbeat, silence_ends(id, backup));
    deadline = deadline ? std::min(*deadline, own) : own;
  }
  return deadline;
}

PrimaryReplica::BackupState PrimaryReplica::state(BackupId id) const {
  POLLUX_ASSERT(id < next_backup_);
  const auto found = backups_.find(id);
  return found == backups_.end() ? BackupState::kDropped : found->second.state;
}

std::size_t PrimaryReplica::alive() const {
  return static_cast<std::size_t>(std::ranges::count_if(
      backups_, [](const auto& entry) { return entry.second.state != BackupState::kDropped; }));
}

bool PrimaryReplica::required(BackupId id) const {
  const BackupState state = this->state(id);
  return state == BackupState::kSettling || state == BackupState::kProtecting;
}

std::optional<EpochId> PrimaryReplica::acknowledged(BackupId id) const {
  const auto found = backups_.find(id);
  return found == backups_.end() ? std::nullopt : found->second.acked;
}

// Events.

std::string PrimaryReplica::why_no_joiner() const {
  if (mode_ == Mode::kStopped || mode_ == Mode::kFenced) return "the machine ends here";
  if (handover_) return "the machine is being handed over";
  if (claim_) return "a backup was lost or given up, and the arbiter has not decided yet";
  const bool joining = std::ranges::any_of(
      backups_, [](const auto& entry) { return entry.second.state != BackupState::kDropped && !counts(entry.second); });
  if (joining) return "another backup is joining";
  if (alive() == kMaxBackups) return fmt::format("it has {} backups already", kMaxBackups);
  return {};
}

void PrimaryReplica::on(const BackupJoined& event) {
  POLLUX_ASSERT(event.backup == next_backup_);
  ++next_backup_.value;
  std::erase_if(backups_, [](const auto& entry) { return entry.second.state == BackupState::kDropped; });
  if (mode_ == Mode::kStopped || mode_ == Mode::kFenced) return;
  POLLUX_ASSERT(backups_.size() < kMaxBackups);
  backups_.emplace(event.backup, Backup{});
}

void PrimaryReplica::on(const LinkUp& event) {
  if (mode_ == Mode::kStopped || mode_ == Mode::kFenced) return;
  Backup& peer = backup(event.backup);
  POLLUX_ASSERT(peer.state == BackupState::kConnecting);
  peer.state = BackupState::kGreeting;
  peer.hears = true;
  peer.last_heard = now_;
  peer.next_heartbeat = now_ + config_.timing.heartbeat_interval;
  peer.greeted = term_;
  Hello hello = config_.hello;
  hello.term = term_;
  effects_.emplace_back(Send{event.backup, std::move(hello)});
}

void PrimaryReplica::on(const LinkDown& event) {
  Backup* peer = find(event.backup);
  if (peer == nullptr) return;
  peer->hears = false;
  if (peer->state != BackupState::kDropped && peer->state != BackupState::kLost) lose(event.backup, event.why);
}

void PrimaryReplica::on(const Heard& event) {
  Backup* peer = find(event.backup);
  if (peer != nullptr && is_linked(*peer)) peer->last_heard = std::max(peer->last_heard, event.at);
}

void PrimaryReplica::on(const SyncFinished& event) {
  if (state(event.backup) == BackupState::kDropped) return;  // dropped while the engine was at it
  Backup& peer = backup(event.backup);
  POLLUX_ASSERT(peer.state == BackupState::kSyncing);
  POLLUX_ASSERT(event.epoch == closed_);
  peer.state = BackupState::kSettling;
  peer.base = event.epoch;
  peer.executed = event.epoch;
  ever_required_ = true;
  advance_executed();
  if (mode_ != Mode::kUnprotected) return;
  POLLUX_ASSERT(committed_ == closed_);
  mode_ = Mode::kReplicating;
  effects_.emplace_back(Replicating{});
}

void PrimaryReplica::on(const EpochClosed& event) {
  POLLUX_ASSERT(event.epoch == closed_.next());
  POLLUX_ASSERT(mode_ != Mode::kStopped && !handover_);
  closed_ = event.epoch;
  flushed_.push_back(event.flushed);
  advance_commit();
}

void PrimaryReplica::on(const HealBegun& event) {
  Backup* peer = find(event.backup);
  if (peer == nullptr || !is_required(*peer)) return;  // lost while the engine was at it
  POLLUX_ASSERT(peer->healing && !peer->healing->record);
  POLLUX_ASSERT(event.epoch == closed_.next());
  peer->healing->record = event.epoch;
}

void PrimaryReplica::on(const EpochDurable& event) {
  // Held writes reach the primary's image only after their epoch's commit.
  POLLUX_ASSERT(event.epoch >= durable_ && event.epoch <= committed_);
  durable_ = event.epoch;
  advance_commit();
}

void PrimaryReplica::on(const TermWon& event) {
  if (!claim_) return;  // it stopped meanwhile
  check_claim(event.term);
  const std::vector<BackupId> members = std::exchange(claim_, {})->members;
  term_ = event.term;
  if (handover_) take_back();
  // A member that was lost, or given up, while the claim was decided may claim the next term: that is another claim.
  const auto is_member = [&](BackupId id) { return std::ranges::find(members, id) != members.end(); };
  bool again = false;
  for (const auto& [id, backup] : backups_) {
    if (is_linked(backup) && (!backup.released || is_member(id))) effects_.emplace_back(Send{id, NewTerm{term_}});
  }
  for (const auto& [id, backup] : backups_) {
    const bool lost = backup.state == BackupState::kLost;
    if (!lost && !(backup.released && is_required(backup))) continue;
    if (is_member(id)) {
      again = true;
    } else {
      give_up(id, lost ? backup.loss : "given up by the operator");
    }
  }
  if (again) claim_next_term();
}

void PrimaryReplica::on(const TermLost& event) {
  if (!claim_) return;
  check_claim(event.term);
  claim_.reset();
  if (handover_) return handed_over(false);
  for (auto& [id, backup] : backups_) backup.state = BackupState::kDropped;
  mode_ = Mode::kFenced;
  effects_.emplace_back(Fenced{fmt::format("term {} is another replica's", event.term.value)});
}

void PrimaryReplica::on(const ArbiterUnreachable&) {
  if (!claim_) return;
  POLLUX_ASSERT(!claim_->retry_at);
  claim_->retry_at = now_ + config_.timing.arbitration_retry;
}

void PrimaryReplica::on(const Release& event) {
  Backup* peer = event.backup < next_backup_ ? find(event.backup) : nullptr;
  if (peer == nullptr || peer->state == BackupState::kDropped) {
    effects_.emplace_back(ReleaseRefused{event.backup, "there is no such backup"});
  } else if (peer->state == BackupState::kLost) {
    effects_.emplace_back(ReleaseRefused{event.backup, "it is lost, and dropped as soon as the arbiter says so"});
  } else if (handover_) {
    effects_.emplace_back(ReleaseRefused{event.backup, "the machine is being handed over"});
  } else if (!is_required(*peer)) {
    give_up(event.backup, "given up by the operator");
  } else {
    peer->released = true;
    if (!claim_) claim_next_term();  // else it is given up by that one, or by the next
  }
}

void PrimaryReplica::on(const HandOverTo& event) {
  if (const std::string why = why_no_handover(event.backup); !why.empty()) {
    effects_.emplace_back(HandoverRefused{event.backup, why});
    return;
  }
  handover_ = Handover{event.backup, now_ + config_.timing.handover_timeout};
  effects_.emplace_back(Send{event.backup, HandOver{closed_}});
}

void PrimaryReplica::on(const Stop& event) {
  for (auto& [id, backup] : backups_) {
    const bool hears = is_linked(backup) || backup.state == BackupState::kLost;
    if (hears && backup.hears) effects_.emplace_back(Send{id, Goodbye{event.reason, {}}});
    backup.state = BackupState::kDropped;
  }
  claim_.reset();
  handover_.reset();
  if (mode_ != Mode::kFenced) mode_ = Mode::kStopped;
}

void PrimaryReplica::on(const Tick&) {
  if (claim_ && claim_->retry_at && now_ >= *claim_->retry_at) {
    claim_->retry_at.reset();
    ask_arbiter();
  }
  for (const auto& [id, backup] : backups_) {
    if (!is_linked(backup)) continue;
    const auto silence = now_ - backup.last_heard;
    if (now_ >= silence_ends(id, backup)) {
      lose(id, fmt::format("silent for {} ms",
                           std::chrono::duration_cast<std::chrono::milliseconds>(silence).count()));
    } else {
      heartbeat_when_due(id);
    }
  }
}

// Messages.

void PrimaryReplica::on_message(BackupId from, const Welcome& message) {
  Backup& peer = backup(from);
  if (peer.state != BackupState::kGreeting) return violation(from, "Welcome out of place");
  if (message.version != config_.hello.version) {
    return give_up(from,
                   fmt::format("speaks protocol version {}, not {}", message.version, config_.hello.version));
  }
  if (message.term != peer.greeted || message.config_digest != config_.hello.config_digest) {
    return violation(from, "Welcome to another machine or term");
  }
  peer.state = BackupState::kWelcomed;
  peer.replica = message.replica;
  start_sync_when_decided();
}

// The other side leads a machine, and greets whoever connects as one that may join it. A primary that was started to be
// protected by it is a stale one, on a host that was lost, say: the other's image is the newer one.
void PrimaryReplica::on_message(BackupId from, const Hello&) {
  const std::string what = fmt::format("backup {} leads a machine itself", from.value);
  if (backup(from).state != BackupState::kGreeting) return violation(from, "a backup sent Hello");
  if (ever_required_ || from.value >= config_.backups) return give_up(from, what);
  drop_all(what, GoodbyeReason::kDropped);
  mode_ = Mode::kFenced;
  effects_.emplace_back(Fenced{what + ": this host can be its backup, with --join"});
}

void PrimaryReplica::on_message(BackupId from, const Refuse& message) {
  if (backup(from).state != BackupState::kGreeting) return violation(from, "Refuse out of place");
  drop(from, "refused: " + message.reason);
}

void PrimaryReplica::on_message(BackupId from, const DiskDigests&) {
  if (backup(from).state != BackupState::kSyncing) violation(from, "DiskDigests out of place");
}

void PrimaryReplica::on_message(BackupId from, const SyncMark&) {
  if (backup(from).state != BackupState::kSyncing) violation(from, "SyncMark out of place");
}

void PrimaryReplica::on_message(BackupId from, const Ack& message) {
  Backup& peer = backup(from);
  if (!is_required(peer))
    return violation(from, fmt::format("Ack({}) before the full sync", message.epoch.value));
  if (message.epoch > closed_) {
    return violation(from, fmt::format("Ack({}), last closed is {}", message.epoch.value, closed_.value));
  }
  if (message.epoch < peer.base) {
    return violation(from,
                     fmt::format("Ack({}), its sync ended at {}", message.epoch.value, peer.base.value));
  }
  if (peer.acked && message.epoch <= *peer.acked) {
    return violation(from, fmt::format("Ack({}) after Ack({})", message.epoch.value, peer.acked->value));
  }
  if (peer.healing) {
    const bool heals = peer.healing->record && message.epoch >= *peer.healing->record;
    if (!heals) return violation(from, fmt::format("Ack({}) while it is diverged", message.epoch.value));
    peer.executed = *peer.healing->record;
    peer.healing.reset();
    effects_.emplace_back(Healed{from, peer.executed});
  }
  if (!peer.acked) {
    peer.state = BackupState::kProtecting;
    effects_.emplace_back(Protected{from});
  }
  peer.acked = message.epoch;
  advance_commit();
  advance_executed();
}

void PrimaryReplica::on_message(BackupId from, const Executed& message) {
  Backup& peer = backup(from);
  if (!lockstep() || !is_required(peer) || peer.healing) return violation(from, "Executed out of place");
  if (message.epoch <= peer.executed || message.epoch > closed_) {
    return violation(from, fmt::format("Executed({}) after {}, last closed is {}", message.epoch.value,
                                       peer.executed.value, closed_.value));
  }
  peer.executed = message.epoch;
  advance_executed();
}

void PrimaryReplica::on_message(BackupId from, const Divergence& message) {
  Backup& peer = backup(from);
  if (!lockstep() || !is_required(peer) || peer.healing) return violation(from, "Divergence out of place");
  if (message.epoch <= peer.executed || message.epoch > closed_) {
    return violation(from, fmt::format("Divergence({}) after {}, last closed is {}", message.epoch.value,
                                       peer.executed.value, closed_.value));
  }
  peer.healing.emplace();
  effects_.emplace_back(Heal{from, message});
}

void PrimaryReplica::on_message(BackupId, const Heartbeat&) {}  // receive() has noted the time

void PrimaryReplica::on_message(BackupId from, const Goodbye& message) {
  backup(from).hears = false;
  if (message.reason == GoodbyeReason::kTookOver && handover_ && handover_->to == from) return handed_over(true);
  lose(from, fmt::format("left: {}", message.text.empty() ? to_string(message.reason) : message.text));
}

template <class Other>
void PrimaryReplica::on_message(BackupId from, const Other& message) {
  violation(from, fmt::format("a backup sent {}", name_of(message)));
}

// What they share.

PrimaryReplica::Backup& PrimaryReplica::backup(BackupId id) {
  Backup* found = find(id);
  POLLUX_ASSERT(found != nullptr);
  return *found;
}

PrimaryReplica::Backup* PrimaryReplica::find(BackupId id) {
  POLLUX_ASSERT(id < next_backup_);
  const auto found = backups_.find(id);
  return found == backups_.end() ? nullptr : &found->second;
}

bool PrimaryReplica::is_linked(const Backup& backup) {
  return backup.state != BackupState::kConnecting && backup.state != BackupState::kLost &&
         backup.state != BackupState::kDropped;
}

bool PrimaryReplica::is_required(const Backup& backup) {
  return backup.state == BackupState::kSettling || backup.state == BackupState::kProtecting;
}

bool PrimaryReplica::counts(const Backup& backup) {
  return is_required(backup) || backup.state == BackupState::kLost;
}

// How a backup is left, and what follows:
//
//   it is                 cause                                 effect
//   not required yet      link's end, silence, Goodbye,         give_up: Goodbye(dropped) if it hears, DropBackup; dropped
//                         violation, Release
//   required              the same but Release                  lose: lost, and counts on. ClaimTerm, if none is under way
//                                                               and no handover to another decides
//   required              Release                               released: counts, hears and acknowledges on. ClaimTerm, if
//                                                               none is under way
//   lost, or released     TermWon by a claim without its name   give_up
//   lost, or released     TermWon by a claim with its name      goes on counting; ClaimTerm for the term after
//   whatever              TermLost                              dropped without a word, for one of them leads; Fenced
//   whatever              TermLost in a handover, or the one    dropped, with Goodbye(took over) if that one said so;
//                         that was asked says took over         HandedOver
//   whatever              Stop                                  dropped, with Goodbye(reason) if it hears
//
// drop(), in which every give_up ends, may advance the commit, and may leave nobody who counts: Unprotected.
void PrimaryReplica::violation(BackupId id, const std::string& what) {
  lose(id, "protocol violation: " + what);
}

// From whatever cause. One that has SyncEnd, or may have it, could be promoting itself: only the arbiter knows.
void PrimaryReplica::lose(BackupId id, const std::string& reason) {
  Backup& peer = backup(id);
  if (!is_required(peer)) return give_up(id, reason);
  peer.state = BackupState::kLost;
  peer.loss = reason;
  peer.healing.reset();
  advance_executed();  // nobody waits for a lost one to go on
  if (claim_) return;  // looked at when it is won
  if (handover_ && handover_->to != id) return;  // whose outcome decides this too
  claim_next_term();
}

void PrimaryReplica::claim_next_term() {
  claim_.emplace();
  for (const auto& [id, backup] : backups_) {
    if (is_required(backup) && !backup.released) claim_->members.push_back(id);
  }
  ask_arbiter();
}

void PrimaryReplica::ask_arbiter() {
  std::vector<ReplicaId> members;
  for (const BackupId id : claim_->members) members.push_back(backup(id).replica);
  effects_.emplace_back(ClaimTerm{term_.next(), std::move(members)});
}

// Empty: it can be done.
std::string PrimaryReplica::why_no_handover(BackupId to) const {
  if (handover_) return "the machine is being handed over already";
  if (!(to < next_backup_) || state(to) == BackupState::kDropped) return "there is no such backup";
  if (state(to) != BackupState::kProtecting) return fmt::format("it is {}", to_string(state(to)));
  if (backups_.at(to).healing) return "it diverged and is being healed";
  if (claim_) return "a backup is lost or given up, and the arbiter has not decided yet";
  if (mode_ != Mode::kReplicating || committed_ != closed_) return "not every epoch is committed";
  return {};
}

// Another replica leads. Which one is certain only when it said so: then the rest have nothing to decide any more.
void PrimaryReplica::handed_over(bool told) {
  const BackupId to = handover_->to;
  handover_.reset();
  claim_.reset();
  mode_ = Mode::kFenced;
  if (told) {
    drop_all(fmt::format("backup {} leads the machine now", to.value), GoodbyeReason::kTookOver);
  } else {
    drop_all("another replica leads the machine now", std::nullopt);
  }
  effects_.emplace_back(HandedOver{term_.next()});
}

// With a goodbye to those who hear, or without a word. This replica leads no more.
void PrimaryReplica::drop_all(const std::string& reason, std::optional<GoodbyeReason> goodbye) {
  for (auto& [id, backup] : backups_) {
    if (backup.state == BackupState::kDropped) continue;
    if (goodbye && backup.hears) effects_.emplace_back(Send{id, Goodbye{*goodbye, reason}});
    backup.state = BackupState::kDropped;
    effects_.emplace_back(DropBackup{id, reason});
  }
}

// The term was claimed because the one that was asked is lost.
void PrimaryReplica::take_back() {
  effects_.emplace_back(TakenBack{term_, backup(handover_->to).loss});
  handover_.reset();
}

TimePoint PrimaryReplica::silence_ends(BackupId id, const Backup& backup) const {
  if (handover_ && handover_->to == id) return handover_->deadline;
  return backup.last_heard + config_.timing.silence_timeout;
}

void PrimaryReplica::give_up(BackupId id, const std::string& reason) {
  // A backup that still hears this ends at once and asks no arbiter.
  if (backup(id).hears) effects_.emplace_back(Send{id, Goodbye{GoodbyeReason::kDropped, reason}});
  drop(id, reason);
}

void PrimaryReplica::check_claim(Term answered) const {
  POLLUX_ASSERT(!claim_->retry_at);
  POLLUX_ASSERT(answered == term_.next());
}

void PrimaryReplica::drop(BackupId id, const std::string& reason) {
  backup(id).state = BackupState::kDropped;
  effects_.emplace_back(DropBackup{id, reason});
  advance_executed();
  start_sync_when_decided();
  const bool anyone = ever_required_ ? std::ranges::any_of(backups_, [](const auto& entry) { return counts(entry.second); })
                                     : alive() > 0;
  if (!anyone && mode_ == Mode::kReplicating) {
    mode_ = Mode::kUnprotected;
    effects_.emplace_back(Unprotected{});
  }
  advance_commit();
}

void PrimaryReplica::start_sync_when_decided() {
  const bool undecided = std::ranges::any_of(backups_, [](const auto& entry) {
    return entry.second.state == BackupState::kConnecting || entry.second.state == BackupState::kGreeting;
  });
  if (undecided) return;
  for (auto& [id, backup] : backups_) {
    if (backup.state != BackupState::kWelcomed) continue;
    backup.state = BackupState::kSyncing;
    effects_.emplace_back(StartFullSync{id});
  }
}

void PrimaryReplica::heartbeat_when_due(BackupId id) {
  Backup& peer = backup(id);
  if (now_ < peer.next_heartbeat) return;
  effects_.emplace_back(Send{id, Heartbeat{++peer.heartbeats}});
  peer.next_heartbeat = now_ + config_.timing.heartbeat_interval;
}

EpochId PrimaryReplica::acknowledged_by_all() const {
  if (mode_ == Mode::kUnprotected) return closed_;
  std::optional<EpochId> least;
  for (const auto& [id, backup] : backups_) {
    if (!counts(backup)) continue;
    const EpochId acked = backup.acked.value_or(EpochId{0});
    least = least ? std::min(*least, acked) : acked;
  }
  return least.value_or(committed_);
}

void PrimaryReplica::advance_commit() {
  if (mode_ == Mode::kStopped || mode_ == Mode::kFenced) return;
  const bool alone = mode_ == Mode::kUnprotected;
  const EpochId before = committed_;
  const EpochId acknowledged = acknowledged_by_all();
  bool durable_first = false;
  while (committed_ < acknowledged) {
    const bool flushed = flushed_.front();
    // Alone, the engine makes the image durable before it releases; otherwise the previous flush must be by
    // now.
    if (flushed && !alone && durable_ < last_flush_) break;
    flushed_.pop_front();
    committed_ = committed_.next();
    if (flushed) last_flush_ = committed_;
    durable_first |= flushed && alone;
  }
  if (committed_ != before) effects_.emplace_back(Committed{committed_, durable_first});
}

void PrimaryReplica::advance_executed() {
  if (!lockstep()) return;
  std::optional<EpochId> least;
  for (const auto& [id, backup] : backups_) {
    if (is_required(backup)) least = least ? std::min(*least, backup.executed) : backup.executed;
  }
  if (!least || *least <= executed_) return;
  executed_ = *least;
  effects_.emplace_back(ExecutedByAll{executed_});
}

void PrimaryReplica::check_invariants() const {
  POLLUX_ASSERT(committed_ <= closed_);
  POLLUX_ASSERT(durable_ <= committed_);
  POLLUX_ASSERT(last_flush_ <= committed_);
  POLLUX_ASSERT(flushed_.size() == closed_.value - committed_.value);
  bool lost = false;
  bool released = false;
  for (const auto& [id, backup] : backups_) {
    POLLUX_ASSERT(!counts(backup) || mode_ == Mode::kReplicating);
    lost |= backup.state == BackupState::kLost;
    released |= backup.released && is_required(backup);
    POLLUX_ASSERT(!backup.acked || *backup.acked <= closed_);
    POLLUX_ASSERT(!is_required(backup) || !lockstep() ||
                  (backup.executed >= executed_ && backup.executed <= closed_));
    POLLUX_ASSERT(!backup.healing || (lockstep() && backup.state != BackupState::kLost));
    POLLUX_ASSERT((backup.state != BackupState::kProtecting) || backup.acked.has_value());
    // Output commit itself: nothing is committed that a backup which counts has not acknowledged.
    POLLUX_ASSERT(!counts(backup) || !backup.acked || *backup.acked >= committed_);
  }
  POLLUX_ASSERT(!claim_ || lost || released);
  POLLUX_ASSERT(claim_ || handover_ || !(lost || released));
  // Nothing is left to let out, and none of it may come, while another may be asked to lead.
  POLLUX_ASSERT(!handover_ || (mode_ == Mode::kReplicating && committed_ == closed_));
  POLLUX_ASSERT(!claim_ || mode_ == Mode::kReplicating);
}

// Text.

std::string_view to_string(PrimaryReplica::BackupState state) {
  switch (state) {
    case PrimaryReplica::BackupState::kConnecting: return "connecting";
    case PrimaryReplica::BackupState::kGreeting: return "greeting";
    case PrimaryReplica::BackupState::kWelcomed: return "welcomed";
    case PrimaryReplica::BackupState::kSyncing: return "syncing";
    case PrimaryReplica::BackupState::kSettling: return "settling";
    case PrimaryReplica::BackupState::kProtecting: return "protecting";
    case PrimaryReplica::BackupState::kLost: return "lost";
    case PrimaryReplica::BackupState::kDropped: return "dropped";
  }
  return "unknown";
}

namespace primary {

std::string to_string(const Event& event) {
  return std::visit(
      Overloaded{
          [](const BackupJoined& e) { return fmt::format("BackupJoined({})", e.backup.value); },
          [](const LinkUp& e) { return fmt::format("LinkUp({})", e.backup.value); },
          [](const LinkDown& e) { return fmt::format("LinkDown({}, {})", e.backup.value, e.why); },
          [](const Heard& e) { return fmt::format("Heard({})", e.backup.value); },
          [](const SyncFinished& e) {
            return fmt::format("SyncFinished({}, {})", e.backup.value, e.epoch.value);
          },
          [](const EpochClosed& e) {
            return fmt::format("EpochClosed({}{})", e.epoch.value, e.flushed ? ", flushed" : "");
          },
          [](const HealBegun& e) { return fmt::format("HealBegun({}, {})", e.backup.value, e.epoch.value); },
          [](const EpochDurable& e) { return fmt::format("EpochDurable({})", e.epoch.value); },
          [](const TermWon& e) { return fmt::format("TermWon({})", e.term.value); },
          [](const TermLost& e) { return fmt::format("TermLost({})", e.term.value); },
          [](const ArbiterUnreachable&) { return std::string("ArbiterUnreachable"); },
          [](const Release& e) { return fmt::format("Release({})", e.backup.value); },
          [](const HandOverTo& e) { return fmt::format("HandOverTo({})", e.backup.value); },
          [](const Stop& e) { return fmt::format("Stop({})", protocol::to_string(e.reason)); },
          [](const Tick&) { return std::string("Tick"); },
      },
      event);
}

std::string to_string(const Effect& effect) {
  return std::visit(
      Overloaded{
          [](const Send& e) {
            return fmt::format("Send({}, {})", e.backup.value, protocol::to_string(e.message));
          },
          [](const StartFullSync& e) { return fmt::format("StartFullSync({})", e.backup.value); },
          [](const Protected& e) { return fmt::format("Protected({})", e.backup.value); },
          [](const Committed& e) {
            return fmt::format("Committed({}{})", e.epoch.value, e.durable_first ? ", durable first" : "");
          },
          [](const ExecutedByAll& e) { return fmt::format("ExecutedByAll({})", e.epoch.value); },
          [](const Heal& e) { return fmt::format("Heal({}, {})", e.backup.value, protocol::to_string(e.divergence)); },
          [](const Healed& e) { return fmt::format("Healed({}, {})", e.backup.value, e.epoch.value); },
          [](const DropBackup& e) { return fmt::format("DropBackup({}, {})", e.backup.value, e.reason); },
          [](const Unprotected&) { return std::string("Unprotected"); },
          [](const Replicating&) { return std::string("Replicating"); },
          [](const ClaimTerm& e) {
            return e.members.empty() ? fmt::format("ClaimTerm({})", e.term.value)
                                     : fmt::format("ClaimTerm({}, with {})", e.term.value, e.members.size());
          },
          [](const Fenced& e) { return fmt::format("Fenced({})", e.reason); },
          [](const ReleaseRefused& e) { return fmt::format("ReleaseRefused({}, {})", e.backup.value, e.reason); },
          [](const HandoverRefused& e) { return fmt::format("HandoverRefused({}, {})", e.backup.value, e.reason); },
          [](const HandedOver& e) { return fmt::format("HandedOver({})", e.term.value); },
          [](const TakenBack& e) { return fmt::format("TakenBack({}, {})", e.term.value, e.reason); },
      },
      effect);
}

}  // namespace primary

}  // namespace pollux::protocol
