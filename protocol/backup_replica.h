// The backup's side of the protocol as a pure state machine: events and the time go in, effects come out.
// It opens no socket, reads no clock, starts no thread, and sees headers only: bodies pass it by, and the
// engine stages the body of every message whose step had no End among its effects.
//
// States:  idle -LinkUp-> awaiting hello -Hello-> examining -HelloAccepted-> syncing -SyncEnd-> protecting
//          protecting -loss of the primary-> claiming -TermWon-> promoted;  any -> ended.
//
// Rules
//  - A record is applied whole or not at all: ApplyEpoch comes when EpochClose completes it, DiscardPartial
//    when it never will be.
//  - Epochs are strictly consecutive from the full sync's epoch on; the pieces of a record lie between its
//    open and its close; the counts in the close must agree with what was sent.
//  - A mark of the full sync is sent back once everything before it is durable; there is one at a time.
//  - An epoch without a flush is acknowledged when it is whole, one with a flush (and the full sync) only
//    when it is durable. Acks are in order, and each speaks for all epochs before it.
//  - The primary is lost when the link goes down or it is silent for the timeout. While syncing: end; half a
//    sync is never promoted. Earlier: back to idle. While protecting: ClaimTerm asks an arbiter, who decides
//    each term once, for the term after its primary's.
//  - Claiming, it hears nobody and acknowledges nothing more, but keeps its image and applies what is whole. Won:
//    promote to the last whole epoch. Lost: the primary or another backup leads; Fenced. Unreachable: asked again
//    after Timing::arbitration_retry. It never runs the machine before the term is won.
//  - HandOver, at the end of a whole epoch, is the primary's wish that this backup leads: it claims the next term as
//    if the primary were lost, and says Goodbye(took over) when it is won. Nothing else makes it run the machine.
//  - The term is that of Hello or of the last NewTerm, which must be later than the one before.
//  - Whoever says Goodbye(dropped) or Heartbeat before Hello cannot use a backup now: back to idle.
//  - Goodbye(took over) says that another replica leads: Fenced.
//  - Any other Goodbye ends, never promotes. So does a violation by the primary: whoever broke the rules is still alive.
//  - A record takes at most `max_record_bytes` of memory, its pieces' headers included; more is a violation.
//
// In lockstep (Hello) ApplyEpoch of a record of inputs means: execute the epoch. The rules of Bressoud and Schneider
// (SOSP '95, section 2), each marked by its name at the line that keeps it:
//  - P1 environment values are in the record: one without inputs is a violation.
//  - P2 the primary's interrupts are in the inputs of the epoch at whose end they are delivered. Nothing of them is before
//    that end has come, and none comes after the digest of the state that they led to.
//  - P3 interrupts of this host's own devices (OwnInterrupts) change nothing. After Promote they are the engine's to take.
//  - P4 the clock value of the epoch's end is in its close: a record without one, or with one before the last, is a violation.
//  - P5 an epoch is executed only when its whole record is here, and after all before it.
//  - P6 the primary lost: every whole record is executed first, then the term is claimed, and the machine promoted at
//    the end of the last one, the failover epoch, with the interrupts its inputs hold.
//  - P7 Promote says so: every request that is outstanding at a device then is to be answered as uncertain.
// And, beyond the paper:
//  - An epoch without a flush is acknowledged before it is executed; Executed tells how far that is, now and then.
//  - Diverged: an executed epoch did not end as the primary's. kHeal: Divergence says so; nothing of inputs is executed or
//    acknowledged any more until a record of pages is whole, and that is acknowledged when it is durable. kHalt:
//    Goodbye, and the end. The primary lost meanwhile: the end; a state known to be wrong is never promoted.
#pragma once

#include <chrono>
#include <deque>
#include <optional>
#include <ostream>
#include <string>
#include <variant>
#include <vector>

#include "protocol/message.h"
#include "protocol/timing.h"
#include "protocol/types.h"

namespace pollux::protocol {

// What a staged piece of a record takes beside its body and the elements of its header, about.
inline constexpr std::uint64_t kPieceOverhead = 128;

// Executed tells of every so many epochs, and whenever nothing is left to execute.
inline constexpr std::uint64_t kExecutedStride = 16;

enum class OnDivergence { kHeal, kHalt };

struct BackupConfig {
  ReplicaId self;  // told by Welcome, and the claimant
  std::optional<VmId> vm;                                   // accept only this machine
  std::uint64_t max_record_bytes = std::uint64_t{4} << 30;  // one epoch record, staged in memory
  Timing timing;
  OnDivergence on_divergence = OnDivergence::kHeal;
};

namespace backup {

// Events.
struct LinkUp {};
// Feed it after everything the link had received: the last whole record may be in there.
struct LinkDown {
  std::string why;
};
// Bytes of the primary arrived at `at` (Link::last_received()), though perhaps no whole message yet.
struct Heard {
  TimePoint at;
};
// The engine's answer to ExamineHello.
struct HelloAccepted {};
struct HelloRefused {
  std::string reason;
};
// The image holds this epoch (in order; the bytes staged for it are free). In lockstep: it is executed, and as it should be.
struct EpochApplied {
  EpochId epoch;
};
// Lockstep: executed, this epoch (the next to be applied) ended differently. None after it was touched, and those that
// were to be applied are forgotten.
struct Diverged {
  EpochId epoch;
  std::uint32_t pages = 0;  // as in Divergence
  bool all_pages = false;
};
// The image holds every epoch up to this one durably: the answer to MakeDurable.
struct EpochDurable {
  EpochId epoch;
};
// The image holds all of the full sync up to this mark durably: the answer to MakeSyncDurable.
struct SyncDurable {
  SyncMark mark;
};
// The arbiter's answers to ClaimTerm.
struct TermWon {
  Term term;
};
struct TermLost {
  Term term;
};
// As TermLost, but the last term that was won names this backup as a member: its primary had won it, and did not live to
// say so, or was not heard. It lets nothing out that this backup does not have, so the term after it may be claimed.
struct TermOfOwnPrimary {
  Term term;
};
struct ArbiterUnreachable {};
// Lockstep: so many interrupts of this host's own devices came, and were kept from the guest. Never after Promote.
struct OwnInterrupts {
  std::uint64_t count = 0;
};
// The operator stops this backup.
struct Stop {};
struct Tick {};
using Event = std::variant<LinkUp, LinkDown, Heard, HelloAccepted, HelloRefused, EpochApplied, Diverged, EpochDurable,
                           SyncDurable, TermWon, TermLost, TermOfOwnPrimary, ArbiterUnreachable, OwnInterrupts, Stop, Tick>;

// Effects.
struct Send {
  Message message;  // has no body
  bool operator==(const Send&) const = default;
};
// Version and identity are right; the engine looks whether machine and disks fit, and answers.
struct ExamineHello {
  Hello hello;
  bool operator==(const ExamineHello&) const = default;
};
// Welcome was sent: from here on the image is overwritten.
struct BeginSync {
  bool operator==(const BeginSync&) const = default;
};
// The record (or, for the full sync's epoch, the sync) is whole: apply it to the image.
struct ApplyEpoch {
  EpochId epoch;
  bool operator==(const ApplyEpoch&) const = default;
};
// After applying: make the image durable and tell by EpochDurable.
struct MakeDurable {
  EpochId epoch;
  bool operator==(const MakeDurable&) const = default;
};
// During the full sync: make durable what came so far, and tell by SyncDurable.
struct MakeSyncDurable {
  SyncMark mark;
  bool operator==(const MakeSyncDurable&) const = default;
};
// Send this, with the numbers of the pages as its body.
struct ReportDivergence {
  Divergence message;
  bool operator==(const ReportDivergence&) const = default;
};
// Forget what is staged of the record that was open, or was just closed and is of no use to a diverged replica.
struct DiscardPartial {
  EpochId epoch;
  bool operator==(const DiscardPartial&) const = default;
};
// The primary left before anything was touched: close the link, another primary may come (LinkUp again).
struct Disconnect {
  std::string reason;
  bool operator==(const Disconnect&) const = default;
};
// The primary is lost: ask the arbiter for this term and answer by TermWon, TermLost, TermOfOwnPrimary or ArbiterUnreachable.
struct ClaimTerm {
  Term term;
  bool operator==(const ClaimTerm&) const = default;
};
// The term is won: apply what is whole, close the link, and go on in `term` as the machine at the end of `epoch`.
struct Promote {
  EpochId epoch;
  Term term;
  std::string reason;
  // Lockstep: whether a request that is outstanding at a device was performed, only the dead primary knew.
  bool uncertain_io = false;
  bool operator==(const Promote&) const = default;
};
// Another replica leads the machine: it is over without promotion, close the link.
struct Fenced {
  std::string reason;
  bool operator==(const Fenced&) const = default;
};
// It is over without promotion: close the link (after what is queued).
struct End {
  std::string reason;
  bool failed = true;  // false: the machine ended as it should, or the operator asked
  bool operator==(const End&) const = default;
};
using Effect = std::variant<Send, ExamineHello, BeginSync, ApplyEpoch, MakeDurable, MakeSyncDurable, ReportDivergence,
                            DiscardPartial, Disconnect, ClaimTerm, Promote, Fenced, End>;

[[nodiscard]] std::string to_string(const Event& event);
[[nodiscard]] std::string to_string(const Effect& effect);
inline std::ostream& operator<<(std::ostream& out, const Event& event) { return out << to_string(event); }
inline std::ostream& operator<<(std::ostream& out, const Effect& effect) { return out << to_string(effect); }

}  // namespace backup

class BackupReplica {
 public:
  using Effects = std::vector<backup::Effect>;
  enum class State { kIdle, kAwaitingHello, kExamining, kSyncing, kProtecting, kClaiming, kPromoted, kEnded };

  explicit BackupReplica(BackupConfig config);

  [[nodiscard]] Effects step(const backup::Event& event, TimePoint now);
  // A message of the primary; its body is body_length(message) bytes. Ignored once claiming, promoted or ended.
  [[nodiscard]] Effects receive(const Message& message, TimePoint now);

  // When to step(Tick) next, at the latest. None: nothing to wait for.
  [[nodiscard]] std::optional<TimePoint> next_deadline() const;

  [[nodiscard]] State state() const { return state_; }
  [[nodiscard]] Term term() const { return term_; }  // the primary's, as far as it is known here
  // It claims because the primary asked for it.
  [[nodiscard]] bool handed_over() const { return claim_ && claim_->handed_over; }
  // The last whole epoch; meaningful from kProtecting on.
  [[nodiscard]] EpochId last_whole() const { return whole_; }
  [[nodiscard]] EpochId last_acknowledged() const;  // 0 before the first
  [[nodiscard]] bool lockstep() const { return hello_ && hello_->strategy == Strategy::kLockstep; }
  // The epoch that ended wrong, until a record of pages is whole.
  [[nodiscard]] const std::optional<EpochId>& diverged() const { return diverged_; }
  // Of its own host's devices.
  [[nodiscard]] std::uint64_t ignored_interrupts() const { return ignored_interrupts_; }
  // Of the open record and of whole records not yet applied: what the engine bounds by not receiving.
  [[nodiscard]] std::uint64_t staged_bytes() const;

 private:
  // What was received of the full sync or of the open record.
  struct Tally {
    std::uint64_t pages = 0;
    std::uint64_t zero_pages = 0;
    std::uint64_t disk_operations = 0;
    std::uint64_t input_bytes = 0;
    std::uint64_t digest_bytes = 0;
    std::uint64_t state_bytes = 0;  // in pieces so far
    std::optional<EpochId> state_epoch;
    std::uint64_t bytes = 0;  // of memory
  };
  struct OpenRecord {
    EpochId epoch;
    RecordKind kind = RecordKind::kPages;
  };
  struct WholeRecord {
    EpochId epoch;
    std::uint64_t bytes = 0;
  };
  // Of term_.next(). Without a retry the arbiter's answer is awaited.
  struct Claim {
    std::string why;  // the primary counts as lost
    std::optional<TimePoint> retry_at;
    bool handed_over = false;
    bool asked = false;  // in lockstep not before every whole record is executed
  };

  void on(const backup::LinkUp& event);
  void on(const backup::LinkDown& event);
  void on(const backup::Heard& event);
  void on(const backup::HelloAccepted& event);
  void on(const backup::HelloRefused& event);
  void on(const backup::EpochApplied& event);
  void on(const backup::Diverged& event);
  void on(const backup::EpochDurable& event);
  void on(const backup::SyncDurable& event);
  void on(const backup::TermWon& event);
  void on(const backup::TermLost& event);
  void on(const backup::TermOfOwnPrimary& event);
  void on(const backup::ArbiterUnreachable& event);
  void on(const backup::OwnInterrupts& event);
  void on(const backup::Stop& event);
  void on(const backup::Tick& event);
  void on_message(const Hello& message);
  void on_message(const DiskDigestRequest& message);
  void on_message(const DiskBlocks& message);
  void on_message(const SyncPages& message);
  void on_message(const SyncMark& message);
  void on_message(const SyncEnd& message);
  void on_message(const EpochOpen& message);
  void on_message(const EpochPages& message);
  void on_message(const EpochDiskWrites& message);
  void on_message(const EpochInputs& message);
  void on_message(const EpochDigest& message);
  void on_message(const MachineState& message);
  void on_message(const EpochClose& message);
  void on_message(const NewTerm& message);
  void on_message(const Heartbeat& message);
  void on_message(const Goodbye& message);
  void on_message(const HandOver& message);
  template <class Other>
  void on_message(const Other& message);

  [[nodiscard]] bool is_linked() const;
  bool in_sync(const char* what);                   // else a violation
  bool in_record(EpochId epoch, RecordKind kind, const char* what);  // else a violation
  bool disk_exists(DiskId disk);                    // else a violation
  bool within_record_limit();                       // else a violation
  bool inputs_are_complete(const EpochClose& close);  // else a violation
  void complete(EpochId epoch, bool durable_before_ack);
  void acknowledge();
  void tell_executed();
  void leave_diverged(EpochId epoch);
  [[nodiscard]] bool image_is_settled() const;
  void lost_primary(const std::string& why);
  void claim_next_term(const std::string& why, bool handed_over);
  void ask_when_caught_up();
  [[nodiscard]] bool answers_claim(Term answered) const;
  void refuse(const std::string& reason);
  void violation(const std::string& what);
  void discard_partial();
  void end(const std::string& reason, bool failed);
  void check_invariants() const;

  BackupConfig config_;
  State state_ = State::kIdle;
  std::optional<Hello> hello_;
  Term term_;
  std::optional<Claim> claim_;   // while claiming
  std::optional<SyncMark> mark_;  // of the full sync, not yet sent back
  std::optional<OpenRecord> open_;  // the record in progress
  Tally tally_;
  EpochId base_;  // where its image is from: the end of the full sync, or of the record that healed it
  EpochId whole_;
  std::optional<EpochId> acked_;
  std::deque<EpochId> awaiting_durability_;  // whole epochs that may be acknowledged only when durable
  std::deque<WholeRecord> unapplied_;
  std::uint64_t unapplied_bytes_ = 0;
  std::uint64_t ignored_interrupts_ = 0;
  std::chrono::nanoseconds clock_{};  // lockstep: at the end of the last whole record of inputs
  EpochId executed_;       // lockstep
  EpochId executed_told_;  // to the primary
  std::optional<EpochId> diverged_;
  TimePoint last_heard_;
  TimePoint next_heartbeat_;
  std::uint64_t heartbeats_ = 0;
  TimePoint now_;
  Effects effects_;  // of the step in progress
};

[[nodiscard]] std::string_view to_string(BackupReplica::State state);

}  // namespace pollux::protocol
