// The protocol broken on purpose, one rule at a time: the simulator must notice each. A mutant of a replica is a filter
// between the production state machine and the world, which changes events on their way in or effects on their
// way out: a class in mutants.cc. Those of what is around the replicas are asked for where they are.
#pragma once

#include <array>
#include <memory>
#include <optional>
#include <string_view>

#include "protocol/backup_replica.h"
#include "protocol/primary_replica.h"

namespace pollux::sim {

enum class Mutant : std::uint8_t {
  kNone,
  kSkipCommitWait,          // outputs leave when their epoch is closed
  kOneAckForAll,            // an Ack of one backup counts for every backup
  kDropWithoutArbiter,      // the primary takes every term it claims for won
  kPromoteWithoutArbiter,   // so does a backup
  kUnreachableIsWon,        // both take an unreachable arbiter for a won term
  kClaimUntilWon,           // a backup whose term is lost claims the one after it
  kIgnoreNewTerm,           // a backup forgets the terms it is told
  kFencedGoesOn,            // a fenced primary lets out what it held
  kGoodbyeBeforeTheTerm,    // a lost backup is told Goodbye before the term is won
  kSyncEndNotRequired,      // a backup counts only from its first Ack on
  kHalfRecord,              // the open record is applied at promotion
  kAckBeforeDurable,        // a backup acknowledges a flush that its disk does not hold
  kFlushNotAwaited,         // the primary takes its own disk for durable at once
  kAloneWithoutDurability,  // alone, outputs leave before the flush they may speak of is durable
  kGoodbyePromotes,         // a backup takes Goodbye for the loss of its primary
  kLostDoesNotCount,        // the commit goes on without a lost backup before the term is won
  kAcksWhileClaiming,       // a backup that claims acknowledges records which it ignores
  kArbiterForgets,          // the arbiter gives a term to everyone who claims it
  kRunsInHandover,          // the guest goes on while another is asked to lead
  kReleaseWithoutTerm,      // a backup is given up by the operator before its term is taken
  kJoinerNotAwaited,        // a primary that was alone does not wait for the Acks of who joined it
  kSuccessorKeepsTerm,      // a promoted backup goes on in the term of the primary before
  kLostIsMember,            // the primary names the backups that it gives up as members of its term
  kMemberNeedsNoTerm,       // a member that is lost while the claim is decided is given up with the others
  kMemberIsFenced,          // a backup takes the term that its own primary won for another's
  kFramesNotChecked,        // a session believes that TCP makes no mistakes
  kClaimBeforeApplied,      // a backup claims while records wait for its disk, which may fail
};

inline constexpr std::array<std::string_view, 28> kMutantNames = {
    "none",
    "skip-commit-wait",
    "one-ack-for-all",
    "drop-without-arbiter",
    "promote-without-arbiter",
    "unreachable-is-won",
    "claim-until-won",
    "ignore-new-term",
    "fenced-goes-on",
    "goodbye-before-the-term",
    "sync-end-not-required",
    "half-record",
    "ack-before-durable",
    "flush-not-awaited",
    "alone-without-durability",
    "goodbye-promotes",
    "lost-does-not-count",
    "acks-while-claiming",
    "arbiter-forgets",
    "runs-in-handover",
    "release-without-term",
    "joiner-not-awaited",
    "successor-keeps-term",
    "lost-is-member",
    "member-needs-no-term",
    "member-is-fenced",
    "frames-not-checked",
    "claim-before-applied",
};

// Replicas that say what they must not are accused of it. The other mutants break what is around the state machines.
inline constexpr bool is_of_a_replica(Mutant mutant) {
  return mutant != Mutant::kNone && mutant != Mutant::kFramesNotChecked && mutant != Mutant::kClaimBeforeApplied;
}

class PrimaryMutation;
class BackupMutation;

// PrimaryReplica with a mutant around it.
class PrimaryUnderTest {
 public:
  using Effects = protocol::PrimaryReplica::Effects;

  PrimaryUnderTest(protocol::PrimaryConfig config, Mutant mutant);
  ~PrimaryUnderTest();

  [[nodiscard]] Effects step(const protocol::primary::Event& event, protocol::TimePoint now);
  [[nodiscard]] Effects receive(protocol::BackupId from, const protocol::Message& message,
                                protocol::TimePoint now);

  [[nodiscard]] std::optional<protocol::TimePoint> next_deadline() const { return machine_.next_deadline(); }
  [[nodiscard]] bool required(protocol::BackupId backup) const;
  // Neither lost nor dropped.
  [[nodiscard]] bool counts(protocol::BackupId backup) const {
    const auto state = machine_.state(backup);
    return state != protocol::PrimaryReplica::BackupState::kLost && state != protocol::PrimaryReplica::BackupState::kDropped;
  }
  [[nodiscard]] protocol::EpochId closed() const { return machine_.closed(); }
  [[nodiscard]] protocol::EpochId committed() const;
  [[nodiscard]] bool unprotected() const;
  [[nodiscard]] protocol::Term term() const { return machine_.term(); }
  [[nodiscard]] bool fenced() const { return machine_.fenced(); }
  [[nodiscard]] bool claiming() const { return machine_.claiming(); }
  [[nodiscard]] bool takes_joiners() const { return machine_.why_no_joiner().empty(); }
  [[nodiscard]] protocol::BackupId next_backup() const { return machine_.next_backup(); }

 private:
  protocol::PrimaryReplica machine_;
  std::unique_ptr<PrimaryMutation> mutation_;  // null: none
};

// BackupReplica with a mutant around it.
class BackupUnderTest {
 public:
  using Effects = protocol::BackupReplica::Effects;

  BackupUnderTest(protocol::BackupConfig config, Mutant mutant);
  ~BackupUnderTest();

  [[nodiscard]] Effects step(const protocol::backup::Event& event, protocol::TimePoint now);
  [[nodiscard]] Effects receive(const protocol::Message& message, protocol::TimePoint now);

  [[nodiscard]] std::optional<protocol::TimePoint> next_deadline() const { return machine_.next_deadline(); }
  [[nodiscard]] protocol::BackupReplica::State state() const { return machine_.state(); }
  [[nodiscard]] protocol::EpochId last_whole() const { return machine_.last_whole(); }
  [[nodiscard]] std::uint64_t staged_bytes() const { return machine_.staged_bytes(); }

 private:
  protocol::BackupReplica machine_;
  std::unique_ptr<BackupMutation> mutation_;  // null: none
};

}  // namespace pollux::sim
