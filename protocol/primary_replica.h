// The primary's side of the protocol as a pure state machine: events and the time go in, effects come out.
// It opens no socket, reads no clock, starts no thread, and sees headers only: bodies pass it by.
//
// It decides when an epoch is committed (output commit: no output of an epoch leaves before), which backups
// count, when one is given up, and when the primary goes on alone. The engine feeds events from one thread
// and carries out the effects in order.
//
// A backup's life:  connecting -LinkUp-> greeting -Welcome-> welcomed -(all decided)-> syncing
//                   -SyncFinished-> settling -first Ack-> protecting -loss-> lost -TermWon-> dropped, for good;
//                   settling, too, is left through lost; any before it goes to dropped directly.
// Backups are those of the configuration, and whoever joins later (BackupJoined).
//
// Rules
//  - StartFullSync comes for all welcomed backups at once, as soon as none is connecting or greeting.
//  - A backup is required from SyncFinished on. An epoch is committed when every required backup has
//    acknowledged it; so a backup that falls away may advance the commit. With no required backup nothing is
//    committed until Unprotected. Commits are monotone.
//  - Arbitration: a required backup that is lost may be promoting itself right now. It is only *lost*: it counts
//    as before, and nothing more is committed than it acknowledged. ClaimTerm asks an arbiter, who decides each
//    term once, for the next term. Won: nobody else can lead in it, and all who are lost are dropped. Lost: a
//    backup leads; Fenced, for good. Unreachable: asked again after Timing::arbitration_retry.
//  - One claim covers every backup lost until its answer: none of them was told of the new term, so each can
//    claim only this one. The others are told at once (NewTerm): they could claim no later one without it.
//  - Whoever is lost gets no heartbeat, and Goodbye only when the term is won: until then the primary does not
//    know which of the two goes on, and must not end the other.
//  - A backup that is not required never promotes itself: it is dropped without a claim.
//  - Durability: an epoch with a flush is committed only when the primary's own image holds all previous
//    flushed epochs durably, so that no host that comes back alone lacks more than the last acknowledged flush.
//  - When the last required backup is gone: Unprotected, and every closed epoch is committed at once. No backup holds
//    their flushes then: Committed says so, and the primary's image must be durable before other outputs leave.
//  - A primary without backups in its configuration leads its term alone, unprotected from the start.
//  - Re-protection: who joins holds up nothing until SyncFinished, be the machine protected by others or not. From there on
//    it is required like any other: commits wait for it, and its loss needs the next term. When the last required backup is
//    gone, one that is not required yet vouches for nothing: Unprotected, until its SyncFinished.
//  - Release: a required backup that the operator gives up stays required until the term it could claim is won.
//  - Handover: with the guest standing still and every epoch committed, HandOver asks a backup to claim the next term
//    and lead. From there on no epoch is closed and nothing is let out, unless this side wins that term: it claims
//    it when the backup is lost, or silent for Timing::handover_timeout. Won: TakenBack. Lost, or the backup says that
//    it took over: HandedOver, for good.
//  - Heartbeats go out every interval; a backup silent for the timeout is dropped.
//  - Ack of an epoch that was never closed, that goes backwards, or comes from a backup that is not synced is
//    a violation; so is any message out of its state. Violations drop the backup with the reason.
//
// In lockstep (PrimaryConfig::hello) the record of an epoch holds what the epoch took from outside (rules P1, P2 and P4,
// see backup_replica.h), and is sent at its end (P5). To the rules above it adds:
//  - Executed: a backup may run behind; the least of those that are required is told by ExecutedByAll, and the engine
//    holds the guest when it is too far behind.
//  - Heal: a required backup that diverged gets, at the end of an epoch, a record of pages instead of inputs, and is
//    required meanwhile: commits wait for it. Its Ack of that record says that it is healed; nothing else is
//    acknowledged, nor said to be executed, in between. No machine is handed over to it.
#pragma once

#include <chrono>
#include <deque>
#include <map>
#include <optional>
#include <ostream>
#include <string>
#include <variant>
#include <vector>

#include "protocol/claim.h"
#include "protocol/message.h"
#include "protocol/timing.h"
#include "protocol/types.h"

namespace pollux::protocol {

inline constexpr std::size_t kMaxBackups = 3;

struct PrimaryConfig {
  Hello hello;              // sent to each backup when its link comes up; the term is the one it leads in
  std::size_t backups = 1;  // 0..kMaxBackups; their ids are 0..backups-1
  EpochId closed;           // where its epochs go on from: a promoted replica continues those of the primary before
  Timing timing;
};

namespace primary {

// Events.
// Another backup, in addition to those of the configuration: LinkUp or LinkDown follows. Only when why_no_joiner() is empty.
// Ids count up and are never used again; at most kMaxBackups are alive (not dropped) at once.
struct BackupJoined {
  BackupId backup;
};
struct LinkUp {
  BackupId backup;
};
// Also for a link that never came up. Feed it after everything the link had received.
struct LinkDown {
  BackupId backup;
  std::string why;
};
// Bytes of the backup arrived at `at` (Link::last_received()), though perhaps no whole message yet.
struct Heard {
  BackupId backup;
  TimePoint at;
};
// Everything of the full sync but SyncEnd(epoch) was handed to the link. Step this before SyncEnd is handed over:
// with it the backup can take over, so from here on its loss needs a claim. If the backup was dropped before,
// SyncEnd may not be sent any more. `epoch` is the last closed epoch, 0 before the first.
struct SyncFinished {
  BackupId backup;
  EpochId epoch;
};
// The record of the next epoch was handed to the links of all required backups.
struct EpochClosed {
  EpochId epoch;
  bool flushed = false;
};
// Lockstep: the record of pages that heals this backup is that of `epoch`, the next to be closed. Step this before any of
// it is handed to the link.
struct HealBegun {
  BackupId backup;
  EpochId epoch;
};
// The primary's own image holds every epoch up to this (committed) one durably.
struct EpochDurable {
  EpochId epoch;
};
// The arbiter's answers to ClaimTerm.
struct TermWon {
  Term term;
};
struct TermLost {
  Term term;
};
struct ArbiterUnreachable {};
// The operator gives this backup up. Answered by its DropBackup, at once or when the arbiter has decided, or by ReleaseRefused.
struct Release {
  BackupId backup;
};
// The operator wants this backup to lead. The guest stands still, and every output is in a closed epoch. Answered by
// HandoverRefused, or in the end by HandedOver, TakenBack or Fenced; until then no epoch may be closed.
struct HandOverTo {
  BackupId backup;
};
// The machine ends: no epoch follows. Every remaining backup gets Goodbye.
struct Stop {
  GoodbyeReason reason = GoodbyeReason::kStopped;
};
struct Tick {};
using Event = std::variant<BackupJoined, LinkUp, LinkDown, Heard, SyncFinished, EpochClosed, HealBegun, EpochDurable, TermWon,
                           TermLost, ArbiterUnreachable, Release, HandOverTo, Stop, Tick>;

// Effects.
struct Send {
  BackupId backup;
  Message message;  // has no body
  bool operator==(const Send&) const = default;
};
struct StartFullSync {
  BackupId backup;
  bool operator==(const StartFullSync&) const = default;
};
// The backup acknowledged the end of its full sync: from here on it can take over.
struct Protected {
  BackupId backup;
  bool operator==(const Protected&) const = default;
};
// Apply the held disk writes, then release the other outputs, of all epochs up to `epoch`, in order.
struct Committed {
  EpochId epoch;
  // No backup holds the flushes of these epochs: make the own image durable before other outputs leave.
  bool durable_first = false;
  bool operator==(const Committed&) const = default;
};
// Lockstep: every required backup has executed the epochs up to this one.
struct ExecutedByAll {
  EpochId epoch;
  bool operator==(const ExecutedByAll&) const = default;
};
// Lockstep: this backup's epoch did not end as it did here. The pages to heal are in the message's body. The engine
// answers by HealBegun at the end of an epoch, however far behind the backup is.
struct Heal {
  BackupId backup;
  Divergence divergence;
  bool operator==(const Heal&) const = default;
};
struct Healed {
  BackupId backup;
  EpochId epoch;
  bool operator==(const Healed&) const = default;
};
// Close the link (after what is queued, if it is still up); nothing of this backup counts any more.
struct DropBackup {
  BackupId backup;
  std::string reason;
  bool operator==(const DropBackup&) const = default;
};
// No backup that is required is left: go on alone. Epochs may go on being closed; they are committed at once.
struct Unprotected {
  bool operator==(const Unprotected&) const = default;
};
// It was unprotected, and a backup's sync is finished: outputs of every epoch closed from here on are held again.
struct Replicating {
  bool operator==(const Replicating&) const = default;
};
// Ask the arbiter for this term, naming these members, and answer by TermWon, TermLost or ArbiterUnreachable.
struct ClaimTerm {
  Term term;
  std::vector<ReplicaId> members = {};
  bool operator==(const ClaimTerm&) const = default;
};
// A backup leads the machine: nothing held here may ever leave. Close every link without a word: a Goodbye would
// end backups that decide for themselves, each by the arbiter's answer, and one of them may be the new primary.
struct Fenced {
  std::string reason;
  bool operator==(const Fenced&) const = default;
};
// It cannot be done now; nothing has changed.
struct ReleaseRefused {
  BackupId backup;
  std::string reason;
  bool operator==(const ReleaseRefused&) const = default;
};
struct HandoverRefused {
  BackupId backup;
  std::string reason;
  bool operator==(const HandoverRefused&) const = default;
};
// Another replica leads in `term`, as was wanted: nothing may ever leave here. Every link is closed after what is queued.
struct HandedOver {
  Term term;
  bool operator==(const HandedOver&) const = default;
};
// The handover failed, and this replica leads in `term`: the guest goes on here.
struct TakenBack {
  Term term;
  std::string reason;
  bool operator==(const TakenBack&) const = default;
};
using Effect = std::variant<Send, StartFullSync, Protected, Committed, ExecutedByAll, Heal, Healed, DropBackup, Unprotected, Replicating, ClaimTerm,
                            Fenced, ReleaseRefused, HandoverRefused, HandedOver, TakenBack>;

[[nodiscard]] std::string to_string(const Event& event);
[[nodiscard]] std::string to_string(const Effect& effect);
inline std::ostream& operator<<(std::ostream& out, const Event& event) { return out << to_string(event); }
inline std::ostream& operator<<(std::ostream& out, const Effect& effect) { return out << to_string(effect); }

}  // namespace primary

class PrimaryReplica {
 public:
  using Effects = std::vector<primary::Effect>;
  enum class BackupState { kConnecting, kGreeting, kWelcomed, kSyncing, kSettling, kProtecting, kLost, kDropped };

  explicit PrimaryReplica(PrimaryConfig config);

  [[nodiscard]] Effects step(const primary::Event& event, TimePoint now);
  // A message of the backup. Those of a dropped backup are ignored. DiskDigests and SyncMark are checked
  // for their state only; the engine uses them unless the effects drop the backup.
  [[nodiscard]] Effects receive(BackupId from, const Message& message, TimePoint now);

  // When to step(Tick) next, at the latest. None: nothing to wait for.
  [[nodiscard]] std::optional<TimePoint> next_deadline() const;

  [[nodiscard]] std::size_t backups() const { return backups_.size(); }
  [[nodiscard]] BackupState state(BackupId backup) const;
  [[nodiscard]] std::size_t alive() const;    // backups that are not dropped
  [[nodiscard]] std::string why_no_joiner() const;  // empty: another backup may join now
  [[nodiscard]] BackupId next_backup() const { return next_backup_; }  // the id of the next to join
  [[nodiscard]] bool required(BackupId backup) const;  // settling or protecting: it is sent epoch records
  [[nodiscard]] EpochId committed() const { return committed_; }
  [[nodiscard]] EpochId closed() const { return closed_; }
  [[nodiscard]] bool unprotected() const { return mode_ == Mode::kUnprotected; }
  [[nodiscard]] bool fenced() const { return mode_ == Mode::kFenced; }
  [[nodiscard]] bool claiming() const { return claim_.has_value(); }
  [[nodiscard]] bool handing_over() const { return handover_.has_value(); }
  [[nodiscard]] std::optional<EpochId> acknowledged(BackupId backup) const;
  [[nodiscard]] Term term() const { return term_; }

 private:
  // From its Divergence to the Ack of the record that heals it.
  struct Healing {
    std::optional<EpochId> record;  // none before HealBegun
  };
  enum class Mode { kReplicating, kUnprotected, kFenced, kStopped };
  struct Backup {
    BackupState state = BackupState::kConnecting;
    TimePoint last_heard;
    TimePoint next_heartbeat;
    std::uint64_t heartbeats = 0;
    EpochId base;                  // the end of its full sync
    std::optional<EpochId> acked;  // none before the first Ack
    Term greeted;                  // the term its Hello named
    bool hears = false;            // a Goodbye: its link is up and it did not leave
    std::string loss;              // why it is lost
    EpochId executed;              // lockstep
    std::optional<Healing> healing;
    bool released = false;         // the operator gave it up; dropped when a claim that does not name it is won
    ReplicaId replica;             // of its Welcome
  };
  // Of term_.next(). Without a retry the arbiter's answer is awaited. What is asked again is the same: the arbiter may have
  // decided by the first question.
  struct Claim {
    std::vector<BackupId> members;
    std::optional<TimePoint> retry_at = {};
  };

  // HandOver was sent: the guest stands still.
  struct Handover {
    BackupId to;
    TimePoint deadline;
  };

  void on(const primary::BackupJoined& event);
  void on(const primary::LinkUp& event);
  void on(const primary::LinkDown& event);
  void on(const primary::Heard& event);
  void on(const primary::SyncFinished& event);
  void on(const primary::EpochClosed& event);
  void on(const primary::HealBegun& event);
  void on(const primary::EpochDurable& event);
  void on(const primary::TermWon& event);
  void on(const primary::TermLost& event);
  void on(const primary::ArbiterUnreachable& event);
  void on(const primary::Release& event);
  void on(const primary::HandOverTo& event);
  void on(const primary::Stop& event);
  void on(const primary::Tick& event);
  void on_message(BackupId from, const Hello& message);
  void on_message(BackupId from, const Welcome& message);
  void on_message(BackupId from, const Refuse& message);
  void on_message(BackupId from, const DiskDigests& message);
  void on_message(BackupId from, const SyncMark& message);
  void on_message(BackupId from, const Ack& message);
  void on_message(BackupId from, const Executed& message);
  void on_message(BackupId from, const Divergence& message);
  void on_message(BackupId from, const Heartbeat& message);
  void on_message(BackupId from, const Goodbye& message);
  template <class Other>
  void on_message(BackupId from, const Other& message);

  Backup& backup(BackupId id);
  Backup* find(BackupId id);  // null: dropped, and forgotten since
  [[nodiscard]] static bool is_linked(const Backup& backup);
  [[nodiscard]] static bool is_required(const Backup& backup);
  [[nodiscard]] static bool counts(const Backup& backup);  // commits wait for it
  void violation(BackupId id, const std::string& what);
  void lose(BackupId id, const std::string& reason);
  void give_up(BackupId id, const std::string& reason);  // Goodbye, then drop
  void drop(BackupId id, const std::string& reason);
  void check_claim(Term answered) const;
  void claim_next_term();
  void ask_arbiter();
  [[nodiscard]] std::string why_no_handover(BackupId to) const;
  void handed_over(bool told);
  void drop_all(const std::string& reason, std::optional<GoodbyeReason> goodbye);
  void take_back();
  [[nodiscard]] TimePoint silence_ends(BackupId id, const Backup& backup) const;
  void start_sync_when_decided();
  void heartbeat_when_due(BackupId id);
  void advance_commit();
  void advance_executed();
  [[nodiscard]] bool lockstep() const { return config_.hello.strategy == Strategy::kLockstep; }
  [[nodiscard]] EpochId acknowledged_by_all() const;
  void check_invariants() const;

  PrimaryConfig config_;
  std::map<BackupId, Backup> backups_;  // the dropped are forgotten when the next joins
  BackupId next_backup_;
  Mode mode_ = Mode::kReplicating;
  Term term_;                   // the one it leads in
  bool ever_required_ = false;  // a backup: else the first full sync is not over
  std::optional<Claim> claim_;  // as long as a backup is lost or released
  std::optional<Handover> handover_;
  EpochId closed_;
  EpochId committed_;
  EpochId executed_;  // lockstep: by all who are required
  EpochId durable_;
  EpochId last_flush_;        // the last committed epoch with a flush
  std::deque<bool> flushed_;  // of the epochs committed_+1 .. closed_
  TimePoint now_;
  Effects effects_;  // of the step in progress
};

[[nodiscard]] std::string_view to_string(PrimaryReplica::BackupState state);

}  // namespace pollux::protocol
