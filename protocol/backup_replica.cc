#include "protocol/backup_replica.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "base/error.h"
#include "protocol/overloaded.h"

namespace pollux::protocol {

using namespace backup;

BackupReplica::BackupReplica(BackupConfig config) : config_(config) {
  POLLUX_ASSERT(config_.timing.heartbeat_interval < config_.timing.silence_timeout);
  POLLUX_ASSERT(config_.timing.arbitration_retry > std::chrono::nanoseconds(0));
  POLLUX_ASSERT(config_.max_record_bytes > 0);
}

BackupReplica::Effects BackupReplica::step(const Event& event, TimePoint now) {
  now_ = now;
  effects_.clear();
  std::visit([this](const auto& alternative) { on(alternative); }, event);
  check_invariants();
  return std::exchange(effects_, {});
}

BackupReplica::Effects BackupReplica::receive(const Message& message, TimePoint now) {
  now_ = now;
  effects_.clear();
  if (is_linked()) {
    last_heard_ = now;
    std::visit([this](const auto& alternative) { on_message(alternative); }, message);
  }
  check_invariants();
  return std::exchange(effects_, {});
}

std::optional<TimePoint> BackupReplica::next_deadline() const {
  if (claim_) return claim_->retry_at;
  if (!is_linked()) return std::nullopt;
  return std::min(next_heartbeat_, last_heard_ + config_.timing.silence_timeout);
}

EpochId BackupReplica::last_acknowledged() const { return acked_.value_or(EpochId{0}); }

std::uint64_t BackupReplica::staged_bytes() const { return unapplied_bytes_ + (open_ ? tally_.bytes : 0); }

// Events.

void BackupReplica::on(const LinkUp&) {
  if (state_ == State::kEnded) return;
  POLLUX_ASSERT(state_ == State::kIdle);
  state_ = State::kAwaitingHello;
  last_heard_ = now_;
  next_heartbeat_ = now_ + config_.timing.heartbeat_interval;
}

void BackupReplica::on(const LinkDown& event) {
  if (is_linked()) lost_primary(event.why);
}

void BackupReplica::on(const Heard& event) {
  if (is_linked()) last_heard_ = std::max(last_heard_, event.at);
}

void BackupReplica::on(const HelloAccepted&) {
  if (state_ == State::kEnded || state_ == State::kIdle) return;  // the primary went away meanwhile
  POLLUX_ASSERT(state_ == State::kExamining);
  state_ = State::kSyncing;
  tally_ = {};
  effects_.emplace_back(Send{Welcome{kProtocolVersion, hello_->term, hello_->config_digest, config_.self}});
  effects_.emplace_back(BeginSync{});
}

void BackupReplica::on(const HelloRefused& event) {
  if (state_ == State::kEnded || state_ == State::kIdle) return;
  POLLUX_ASSERT(state_ == State::kExamining);
  refuse(event.reason);
}

void BackupReplica::on(const EpochApplied& event) {
  POLLUX_ASSERT(!unapplied_.empty() && unapplied_.front().epoch == event.epoch);
  unapplied_bytes_ -= unapplied_.front().bytes;
  unapplied_.pop_front();
  executed_ = event.epoch;
  if (state_ == State::kProtecting) tell_executed();
  if (state_ == State::kClaiming) ask_when_caught_up();
}

void BackupReplica::on(const Diverged& event) {
  POLLUX_ASSERT(lockstep() && !diverged_);
  POLLUX_ASSERT(!unapplied_.empty() && unapplied_.front().epoch == event.epoch);
  unapplied_.clear();
  unapplied_bytes_ = 0;
  awaiting_durability_.clear();
  if (state_ == State::kEnded) return;
  POLLUX_ASSERT(state_ != State::kPromoted && !(claim_ && claim_->asked));
  diverged_ = event.epoch;
  if (claim_ || config_.on_divergence == OnDivergence::kHalt) return leave_diverged(event.epoch);
  effects_.emplace_back(ReportDivergence{{event.epoch, event.pages, event.all_pages}});
}

void BackupReplica::on(const EpochDurable& event) {
  POLLUX_ASSERT(unapplied_.empty() || event.epoch < unapplied_.front().epoch);
  while (!awaiting_durability_.empty() && awaiting_durability_.front() <= event.epoch) {
    awaiting_durability_.pop_front();
  }
  if (state_ != State::kProtecting) return;
  acknowledge();
  tell_executed();
}

void BackupReplica::on(const SyncDurable& event) {
  if (!mark_ || state_ != State::kSyncing) return;
  POLLUX_ASSERT(event.mark == *mark_);
  mark_.reset();
  effects_.emplace_back(Send{event.mark});
}

void BackupReplica::on(const TermWon& event) {
  if (!answers_claim(event.term)) return;
  state_ = State::kPromoted;
  if (claim_->handed_over) effects_.emplace_back(Send{Goodbye{GoodbyeReason::kTookOver, {}}});
  // P6: at the end of the failover epoch, which is executed. P7: what is outstanding there is uncertain.
  effects_.emplace_back(Promote{whole_, event.term, claim_->why, lockstep()});
  claim_.reset();
}

void BackupReplica::on(const TermLost& event) {
  if (!answers_claim(event.term)) return;
  state_ = State::kEnded;
  effects_.emplace_back(Fenced{
      fmt::format("{}{}; term {} is another replica's", claim_->handed_over ? "" : "lost the primary: ",
                  claim_->why, event.term.value)});
  claim_.reset();
}

void BackupReplica::on(const TermOfOwnPrimary& event) {
  if (!answers_claim(event.term)) return;
  term_ = event.term;
  effects_.emplace_back(ClaimTerm{term_.next()});
}

void BackupReplica::on(const ArbiterUnreachable&) {
  if (!claim_) return;
  POLLUX_ASSERT(!claim_->retry_at);
  claim_->retry_at = now_ + config_.timing.arbitration_retry;
}

// P3: they say nothing of the machine that the primary runs.
void BackupReplica::on(const OwnInterrupts& event) {
  POLLUX_ASSERT(state_ != State::kPromoted);
  ignored_interrupts_ += event.count;
}

void BackupReplica::on(const Stop&) {
  claim_.reset();
  if (state_ == State::kEnded || state_ == State::kPromoted) return;
  if (is_linked()) effects_.emplace_back(Send{Goodbye{GoodbyeReason::kStopped, {}}});
  end("stopped", false);
}

void BackupReplica::on(const Tick&) {
  if (claim_ && claim_->retry_at && now_ >= *claim_->retry_at) {
    claim_->retry_at.reset();
    effects_.emplace_back(ClaimTerm{term_.next()});
  }
  if (!is_linked()) return;
  const auto silence = now_ - last_heard_;
  if (silence >= config_.timing.silence_timeout) {
    const auto milliseconds = std::chrono::duration_cast<std::chrono::milliseconds>(silence).count();
    return lost_primary(fmt::format("silent for {} ms", milliseconds));
  }
  if (now_ < next_heartbeat_) return;
  next_heartbeat_ = now_ + config_.timing.heartbeat_interval;
  effects_.emplace_back(Send{Heartbeat{++heartbeats_}});
}

// Messages.

void BackupReplica::on_message(const Hello& message) {
  if (state_ != State::kAwaitingHello) return violation("Hello out of place");
  if (message.version != kProtocolVersion) {
    return refuse(fmt::format("this backup speaks protocol version {}, the primary {}", kProtocolVersion,
                              message.version));
  }
  if (config_.vm && message.vm != *config_.vm) {
    return refuse(fmt::format("this backup is for VM {}", to_string(*config_.vm)));
  }
  if (message.config_digest != digest_config(message.machine_config)) {
    return violation("the digest of the machine configuration is wrong");
  }
  state_ = State::kExamining;
  hello_ = message;
  term_ = message.term;
  effects_.emplace_back(ExamineHello{message});
}

void BackupReplica::on_message(const DiskDigestRequest& message) {
  if (!in_sync("DiskDigestRequest") || !disk_exists(message.disk)) return;
  const std::uint64_t bytes = hello_->disk_bytes[message.disk.value];
  const std::uint64_t blocks = (bytes + kDigestBlockBytes - 1) / kDigestBlockBytes;
  if (message.first >= blocks || message.count > blocks - message.first) violation("digests beyond the disk");
}

void BackupReplica::on_message(const DiskBlocks& message) {
  if (!in_sync("DiskBlocks") || !disk_exists(message.disk)) return;
  const std::uint64_t bytes = hello_->disk_bytes[message.disk.value];
  for (const DiskExtent& extent : message.extents) {
    if (extent.offset + extent.length > bytes) return violation("blocks beyond the disk");
  }
  tally_.disk_operations += message.extents.size();
}

void BackupReplica::on_message(const SyncPages& message) {
  if (!in_sync("SyncPages")) return;
  for (const PageRun& run : message.runs) (run.zero ? tally_.zero_pages : tally_.pages) += run.count;
}

void BackupReplica::on_message(const SyncMark& message) {
  if (!in_sync("SyncMark")) return;
  if (mark_) return violation(fmt::format("SyncMark({}) before the answer to the last", message.number));
  mark_ = message;
  effects_.emplace_back(MakeSyncDurable{message});
}

void BackupReplica::on_message(const SyncEnd& message) {
  if (!in_sync("SyncEnd")) return;
  if (mark_) return violation("SyncEnd before the answer to the last SyncMark");
  if (message.pages != tally_.pages || message.zero_pages != tally_.zero_pages ||
      message.disk_extents != tally_.disk_operations) {
    return violation("the full sync lacks pages or disk blocks");
  }
  if (tally_.state_epoch && *tally_.state_epoch != message.epoch) return violation("SyncEnd with the state of another epoch");
  state_ = State::kProtecting;
  base_ = message.epoch;
  whole_ = message.epoch;
  executed_told_ = message.epoch;
  tally_ = {};
  complete(message.epoch, true);
}

void BackupReplica::on_message(const EpochOpen& message) {
  if (state_ != State::kProtecting) return violation("EpochOpen before the full sync");
  if (open_)
    return violation(fmt::format("EpochOpen({}) within epoch {}", message.epoch.value, open_->epoch.value));
  if (message.epoch != whole_.next()) {
    return violation(fmt::format("EpochOpen({}) after epoch {}", message.epoch.value, whole_.value));
  }
  if (message.kind == RecordKind::kInputs && !lockstep()) return violation("a record of inputs, and no lockstep");
  if (message.kind == RecordKind::kPages && lockstep() && !diverged_) {
    return violation("a record of pages, and no divergence");
  }
  open_ = OpenRecord{message.epoch, message.kind};
  tally_ = {};
}

void BackupReplica::on_message(const EpochPages& message) {
  if (!in_record(message.epoch, RecordKind::kPages, "EpochPages")) return;
  for (const PageRun& run : message.runs) (run.zero ? tally_.zero_pages : tally_.pages) += run.count;
  tally_.bytes += kPieceOverhead + message.runs.size() * sizeof(PageRun) + body_length(message);
  static_cast<void>(within_record_limit());
}

void BackupReplica::on_message(const EpochDiskWrites& message) {
  if (!in_record(message.epoch, RecordKind::kPages, "EpochDiskWrites")) return;
  for (const DiskOperation& operation : message.operations) {
    if (!disk_exists(operation.disk)) return;
    if (operation.offset + operation.length > hello_->disk_bytes[operation.disk.value]) {
      return violation("disk operation beyond the disk");
    }
  }
  tally_.disk_operations += message.operations.size();
  tally_.bytes += kPieceOverhead + message.operations.size() * sizeof(DiskOperation) + body_length(message);
  static_cast<void>(within_record_limit());
}

void BackupReplica::on_message(const EpochInputs& message) {
  if (!in_record(message.epoch, RecordKind::kInputs, "EpochInputs")) return;
  // P2: they wait for the end of their epoch, whose digest already knows what they did.
  if (tally_.digest_bytes > 0) return violation(fmt::format("inputs of epoch {} after its digest", message.epoch.value));
  tally_.input_bytes += message.bytes;
  tally_.bytes += kPieceOverhead + message.bytes;
  if (tally_.input_bytes > kMaxInputBytesPerEpoch) return violation("the inputs of an epoch are too long");
  static_cast<void>(within_record_limit());
}

void BackupReplica::on_message(const EpochDigest& message) {
  if (!in_record(message.epoch, RecordKind::kInputs, "EpochDigest")) return;
  tally_.digest_bytes += message.bytes;
  tally_.bytes += kPieceOverhead + message.bytes;
  if (tally_.digest_bytes > kMaxDigestBytesPerEpoch) return violation("the digest of an epoch is too long");
  static_cast<void>(within_record_limit());
}

void BackupReplica::on_message(const MachineState& message) {
  if (state_ == State::kSyncing) {
    if (tally_.state_epoch.value_or(message.epoch) != message.epoch) return violation("a state of two epochs");
    tally_.state_epoch = message.epoch;
  } else if (!in_record(message.epoch, RecordKind::kPages, "MachineState")) {
    return;
  }
  tally_.state_bytes += message.bytes;
  tally_.bytes += kPieceOverhead + message.bytes;
  if (tally_.state_bytes > kMaxStateBytes) return violation("the state of the machine is too long");
  if (open_) static_cast<void>(within_record_limit());
}

void BackupReplica::on_message(const EpochClose& message) {
  if (!open_ || !in_record(message.epoch, open_->kind, "EpochClose")) {
    if (!open_) violation(fmt::format("EpochClose({}) outside its record", message.epoch.value));
    return;
  }
  if (message.pages != tally_.pages || message.zero_pages != tally_.zero_pages ||
      message.disk_operations != tally_.disk_operations) {
    return violation(fmt::format("the record of epoch {} lacks pages or disk writes", message.epoch.value));
  }
  const bool inputs = open_->kind == RecordKind::kInputs;
  if (inputs && !inputs_are_complete(message)) return;
  if (!inputs && (message.input_bytes != 0 || message.digest_bytes != 0 || message.clock)) {
    return violation("a record of pages with inputs");
  }
  tally_.bytes += message.state_bytes;
  if (!within_record_limit()) return;
  open_.reset();  // P5: the end of the epoch has come, and only now anything of it is executed
  whole_ = message.epoch;
  if (inputs && diverged_) {  // it cannot be executed from a state that is wrong
    effects_.emplace_back(DiscardPartial{message.epoch});
    return;
  }
  const bool heals = diverged_.has_value();
  if (heals) {
    diverged_.reset();
    base_ = message.epoch;
    executed_told_ = message.epoch;  // its Ack tells it
  }
  complete(message.epoch, message.flushed || heals);
}

void BackupReplica::on_message(const NewTerm& message) {
  if (!hello_) return violation("NewTerm before Hello");
  if (message.term <= term_) {
    return violation(fmt::format("NewTerm({}) after term {}", message.term.value, term_.value));
  }
  term_ = message.term;
}

// receive() has noted the time. A primary begins with Hello: two backups would wait for each other for ever.
void BackupReplica::on_message(const Heartbeat&) {
  if (state_ == State::kAwaitingHello) lost_primary("the other side is no primary yet");
}

void BackupReplica::on_message(const Goodbye& message) {
  if (message.reason == GoodbyeReason::kTookOver) {
    discard_partial();
    state_ = State::kEnded;
    effects_.emplace_back(Fenced{message.text});
    return;
  }
  const bool failed = message.reason == GoodbyeReason::kDropped;
  if (failed && state_ == State::kAwaitingHello) return lost_primary("turned away: " + message.text);
  discard_partial();
  std::string reason = fmt::format("the primary said goodbye: {}", to_string(message.reason));
  if (!message.text.empty()) reason += ": " + message.text;
  end(reason, failed);
}

void BackupReplica::on_message(const HandOver& message) {
  if (state_ != State::kProtecting) return violation("HandOver before the full sync");
  if (open_ || message.epoch != whole_) {
    return violation(fmt::format("HandOver({}) after epoch {}", message.epoch.value, whole_.value));
  }
  if (diverged_) {  // it was reported, and has crossed the order
    claim_ = Claim{.why = {}, .retry_at = std::nullopt, .handed_over = true};
    return leave_diverged(*diverged_);
  }
  claim_next_term("the primary handed over", true);
}

template <class Other>
void BackupReplica::on_message(const Other& message) {
  violation(fmt::format("a primary sent {}", name_of(message)));
}

// What they share.

bool BackupReplica::is_linked() const {
  return state_ == State::kAwaitingHello || state_ == State::kExamining || state_ == State::kSyncing ||
         state_ == State::kProtecting;
}

bool BackupReplica::in_sync(const char* what) {
  if (state_ == State::kSyncing) return true;
  violation(fmt::format("{} out of place", what));
  return false;
}

bool BackupReplica::in_record(EpochId epoch, RecordKind kind, const char* what) {
  if (state_ == State::kProtecting && open_ && open_->epoch == epoch && open_->kind == kind) return true;
  violation(fmt::format("{}({}) outside its record", what, epoch.value));
  return false;
}

bool BackupReplica::disk_exists(DiskId disk) {
  if (disk.value < hello_->disk_bytes.size()) return true;
  violation(fmt::format("there is no disk {}", disk.value));
  return false;
}

bool BackupReplica::within_record_limit() {
  if (tally_.bytes <= config_.max_record_bytes) return true;
  violation(
      fmt::format("the record of epoch {} is longer than {} bytes", open_->epoch.value, config_.max_record_bytes));
  return false;
}

bool BackupReplica::inputs_are_complete(const EpochClose& close) {
  const auto lacks = [&](const char* what) {
    violation(fmt::format("the record of epoch {} lacks {}", close.epoch.value, what));
    return false;
  };
  if (close.input_bytes == 0 || close.input_bytes != tally_.input_bytes) return lacks("its inputs");  // P1
  if (close.digest_bytes == 0 || close.digest_bytes != tally_.digest_bytes) return lacks("its digest");
  if (!close.clock) return lacks("the clock value of its end");  // P4
  if (*close.clock < clock_) {                                   // P4
    violation(fmt::format("the clock goes back in epoch {}", close.epoch.value));
    return false;
  }
  if (close.state_bytes != 0) {
    violation("a record of inputs with a state");
    return false;
  }
  clock_ = *close.clock;
  return true;
}

void BackupReplica::complete(EpochId epoch, bool durable_before_ack) {
  unapplied_.push_back({epoch, tally_.bytes});
  unapplied_bytes_ += tally_.bytes;
  effects_.emplace_back(ApplyEpoch{epoch});
  if (durable_before_ack) {
    awaiting_durability_.push_back(epoch);
    effects_.emplace_back(MakeDurable{epoch});
  }
  acknowledge();
}

void BackupReplica::acknowledge() {
  EpochId held = whole_;
  if (!awaiting_durability_.empty()) {
    // An Ack speaks for all epochs before it: it stops short of the first that must become durable.
    if (!image_is_settled()) return;
    held = {awaiting_durability_.front().value - 1};
  }
  if (acked_ && held <= *acked_) return;
  acked_ = held;
  effects_.emplace_back(Send{Ack{held}});
}

// What the image is from is acknowledged: until then neither Acks nor Executed speak of what follows.
bool BackupReplica::image_is_settled() const {
  return awaiting_durability_.empty() || awaiting_durability_.front() != base_;
}

void BackupReplica::tell_executed() {
  if (!lockstep() || diverged_ || !image_is_settled() || executed_ <= executed_told_) return;
  if (!unapplied_.empty() && executed_.value < executed_told_.value + kExecutedStride) return;
  executed_told_ = executed_;
  effects_.emplace_back(Send{Executed{executed_}});
}

// A primary that still hears is told: it need not wait for this one.
void BackupReplica::leave_diverged(EpochId epoch) {
  const std::string what = fmt::format("diverged in epoch {}", epoch.value);
  const bool heard = !claim_ || claim_->handed_over;
  if (heard) effects_.emplace_back(Send{Goodbye{GoodbyeReason::kStopped, what}});
  const std::string why = claim_ && !claim_->why.empty() ? claim_->why + "; " : "";
  claim_.reset();
  end(fmt::format("{}{}: it cannot take over", why, what), true);
}

void BackupReplica::lost_primary(const std::string& why) {
  switch (state_) {
    case State::kAwaitingHello:
    case State::kExamining:
      // Nothing was touched: another primary may come.
      hello_.reset();
      state_ = State::kIdle;
      effects_.emplace_back(Disconnect{why});
      return;
    case State::kSyncing: return end("lost the primary before protection began: " + why, true);
    case State::kProtecting:
      discard_partial();
      if (diverged_) return end(fmt::format("{}; diverged in epoch {}: it cannot take over", why, diverged_->value), true);
      return claim_next_term(why, false);
    case State::kIdle:
    case State::kClaiming:
    case State::kPromoted:
    case State::kEnded: POLLUX_ASSERT(!"no primary to lose");
  }
}

void BackupReplica::claim_next_term(const std::string& why, bool handed_over) {
  state_ = State::kClaiming;
  claim_ = Claim{.why = why, .retry_at = std::nullopt, .handed_over = handed_over};
  ask_when_caught_up();
}

// A replica that executes is sure of its state only at the end (P6); a passive image is what it was sent.
void BackupReplica::ask_when_caught_up() {
  if (claim_->asked || (lockstep() && !unapplied_.empty())) return;  // P6
  claim_->asked = true;
  effects_.emplace_back(ClaimTerm{term_.next()});
}

// An answer may come after Stop: whatever it says, this backup has ended.
bool BackupReplica::answers_claim(Term answered) const {
  if (!claim_) return false;
  POLLUX_ASSERT(claim_->asked && !claim_->retry_at);
  POLLUX_ASSERT(answered == term_.next());
  return true;
}

void BackupReplica::refuse(const std::string& reason) {
  effects_.emplace_back(Send{Refuse{reason}});
  end("refused the primary: " + reason, true);
}

void BackupReplica::violation(const std::string& what) {
  const std::string reason = "protocol violation: " + what;
  discard_partial();
  effects_.emplace_back(Send{Goodbye{GoodbyeReason::kDropped, reason}});
  end("the primary broke the protocol: " + what, true);
}

void BackupReplica::discard_partial() {
  if (!open_) return;
  effects_.emplace_back(DiscardPartial{open_->epoch});
  open_.reset();
}

void BackupReplica::end(const std::string& reason, bool failed) {
  discard_partial();
  state_ = State::kEnded;
  effects_.emplace_back(End{reason, failed});
}

void BackupReplica::check_invariants() const {
  POLLUX_ASSERT(!open_ || open_->epoch == whole_.next());
  POLLUX_ASSERT(!open_ || state_ == State::kProtecting);
  POLLUX_ASSERT(claim_.has_value() == (state_ == State::kClaiming));
  POLLUX_ASSERT(!acked_ || *acked_ <= whole_);
  POLLUX_ASSERT(!diverged_ || (lockstep() && unapplied_.empty()));
  // No state known to be wrong is ever claimed for, nor promoted.
  POLLUX_ASSERT(!diverged_ || state_ == State::kProtecting || state_ == State::kEnded);
  POLLUX_ASSERT(awaiting_durability_.empty() || !acked_ || *acked_ < awaiting_durability_.front());
  POLLUX_ASSERT(unapplied_.empty() || unapplied_.back().epoch == whole_);
}

// Text.

std::string_view to_string(BackupReplica::State state) {
  switch (state) {
    case BackupReplica::State::kIdle: return "idle";
    case BackupReplica::State::kAwaitingHello: return "awaiting hello";
    case BackupReplica::State::kExamining: return "examining";
    case BackupReplica::State::kSyncing: return "syncing";
    case BackupReplica::State::kProtecting: return "protecting";
    case BackupReplica::State::kClaiming: return "claiming";
    case BackupReplica::State::kPromoted: return "promoted";
    case BackupReplica::State::kEnded: return "ended";
  }
  return "unknown";
}

namespace backup {

std::string to_string(const Event& event) {
  return std::visit(Overloaded{
                        [](const LinkUp&) { return std::string("LinkUp"); },
                        [](const LinkDown& e) { return fmt::format("LinkDown({})", e.why); },
                        [](const Heard&) { return std::string("Heard"); },
                        [](const HelloAccepted&) { return std::string("HelloAccepted"); },
                        [](const HelloRefused& e) { return fmt::format("HelloRefused({})", e.reason); },
                        [](const EpochApplied& e) { return fmt::format("EpochApplied({})", e.epoch.value); },
                        [](const Diverged& e) {
                          return fmt::format("Diverged({}, pages {})", e.epoch.value,
                                             e.all_pages ? std::string("all") : std::to_string(e.pages));
                        },
                        [](const EpochDurable& e) { return fmt::format("EpochDurable({})", e.epoch.value); },
                        [](const SyncDurable& e) { return fmt::format("SyncDurable({})", e.mark.number); },
                        [](const TermWon& e) { return fmt::format("TermWon({})", e.term.value); },
                        [](const TermLost& e) { return fmt::format("TermLost({})", e.term.value); },
                        [](const TermOfOwnPrimary& e) { return fmt::format("TermOfOwnPrimary({})", e.term.value); },
                        [](const ArbiterUnreachable&) { return std::string("ArbiterUnreachable"); },
                        [](const OwnInterrupts& e) { return fmt::format("OwnInterrupts({})", e.count); },
                        [](const Stop&) { return std::string("Stop"); },
                        [](const Tick&) { return std::string("Tick"); },
                    },
                    event);
}

std::string to_string(const Effect& effect) {
  return std::visit(
      Overloaded{
          [](const Send& e) { return fmt::format("Send({})", protocol::to_string(e.message)); },
          [](const ExamineHello&) { return std::string("ExamineHello"); },
          [](const BeginSync&) { return std::string("BeginSync"); },
          [](const ApplyEpoch& e) { return fmt::format("ApplyEpoch({})", e.epoch.value); },
          [](const MakeDurable& e) { return fmt::format("MakeDurable({})", e.epoch.value); },
          [](const MakeSyncDurable& e) { return fmt::format("MakeSyncDurable({})", e.mark.number); },
          [](const ReportDivergence& e) { return fmt::format("Report({})", protocol::to_string(e.message)); },
          [](const DiscardPartial& e) { return fmt::format("DiscardPartial({})", e.epoch.value); },
          [](const Disconnect& e) { return fmt::format("Disconnect({})", e.reason); },
          [](const ClaimTerm& e) { return fmt::format("ClaimTerm({})", e.term.value); },
          [](const Promote& e) {
            return fmt::format("Promote({}, term {}, {}{})", e.epoch.value, e.term.value, e.reason,
                               e.uncertain_io ? "; outstanding I/O is uncertain" : "");
          },
          [](const Fenced& e) { return fmt::format("Fenced({})", e.reason); },
          [](const End& e) { return fmt::format("End({}{})", e.failed ? "failed, " : "", e.reason); },
      },
      effect);
}

}  // namespace backup

}  // namespace pollux::protocol
