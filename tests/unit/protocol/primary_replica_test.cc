#include "protocol/primary_replica.h"

#include "script.h"

namespace pollux::protocol {
namespace {

using namespace primary;
using State = PrimaryReplica::BackupState;

constexpr const char* kHello = "Hello(version 4, vm 00000000000000000000000000000000, term 4, copy, disks 0)";

class PrimaryScript : public ::testing::Test {
 protected:
  static PrimaryConfig config(std::size_t backups) {
    PrimaryConfig config;
    config.hello.term = {4};
    config.backups = backups;
    config.timing = {100ms, 1s, 200ms};
    return config;
  }

  void start(std::size_t backups) { primary_.emplace(config(backups)); }
  // A promoted replica: it leads term 4 alone, and its epochs go on from 30.
  void promote() {
    PrimaryConfig promoted = config(0);
    promoted.closed = {30};
    primary_.emplace(promoted);
  }

  Lines step(const Event& event) { return lines(primary_->step(event, clock_.now())); }
  Lines receive(std::uint32_t from, const Message& message) {
    return lines(primary_->receive({from}, message, clock_.now()));
  }
  Lines welcome(std::uint32_t from) { return receive(from, Welcome{kProtocolVersion, {4}, {}}); }
  Lines ack(std::uint32_t from, std::uint64_t epoch) { return receive(from, Ack{{epoch}}); }
  Lines close(std::uint64_t epoch, bool flushed = false) { return step(EpochClosed{{epoch}, flushed}); }
  Lines durable(std::uint64_t epoch) { return step(EpochDurable{{epoch}}); }

  Lines won(std::uint64_t term) { return step(TermWon{{term}}); }
  Lines lost(std::uint64_t term) { return step(TermLost{{term}}); }
  Lines unreachable() { return step(ArbiterUnreachable{}); }
  Lines link_down(std::uint32_t backup) { return step(LinkDown{{backup}, "x"}); }

  // All backups connected, synced and protecting; nothing closed yet.
  void protect(std::size_t backups) {
    start(backups);
    for (std::uint32_t b = 0; b < backups; ++b) step(LinkUp{{b}});
    for (std::uint32_t b = 0; b < backups; ++b) welcome(b);
    for (std::uint32_t b = 0; b < backups; ++b) step(SyncFinished{{b}, {0}});
    for (std::uint32_t b = 0; b < backups; ++b) ack(b, 0);
  }
  // Everybody has just been heard.
  void hear_all(std::size_t backups) {
    for (std::uint32_t b = 0; b < backups; ++b) step(Heard{{b}, clock_.now()});
  }

  Clock clock_;
  std::optional<PrimaryReplica> primary_;
};

TEST_F(PrimaryScript, OneBackupFromTheFirstLinkToTheFirstCommit) {
  start(1);
  EXPECT_EQ(step(LinkUp{{0}}), (Lines{std::string("Send(0, ") + kHello + ")"}));
  EXPECT_EQ(welcome(0), (Lines{"StartFullSync(0)"}));
  EXPECT_EQ(receive(0, DiskDigests{{0}, 0, 1}), Lines{});
  EXPECT_EQ(receive(0, SyncMark{1}), Lines{});
  EXPECT_EQ(step(SyncFinished{{0}, {0}}), Lines{});
  EXPECT_EQ(primary_->state({0}), State::kSettling);
  EXPECT_EQ(ack(0, 0), (Lines{"Protected(0)"}));
  EXPECT_EQ(close(1), Lines{});
  EXPECT_EQ(ack(0, 1), (Lines{"Committed(1)"}));
  EXPECT_EQ(primary_->committed(), EpochId{1});
}

TEST_F(PrimaryScript, FullSyncStartsForAllAtOnce) {
  start(3);
  for (std::uint32_t b = 0; b < 3; ++b) step(LinkUp{{b}});
  EXPECT_EQ(welcome(1), Lines{});
  EXPECT_EQ(welcome(0), Lines{});
  EXPECT_EQ(welcome(2), (Lines{"StartFullSync(0)", "StartFullSync(1)", "StartFullSync(2)"}));
}

TEST_F(PrimaryScript, ABackupThatCannotBeReachedDoesNotHoldUpTheOthers) {
  start(2);
  step(LinkUp{{0}});
  welcome(0);
  EXPECT_EQ(step(LinkDown{{1}, "connection refused"}),
            (Lines{"DropBackup(1, connection refused)", "StartFullSync(0)"}));
}

TEST_F(PrimaryScript, ARefusalNamesItsReason) {
  start(2);
  step(LinkUp{{0}});
  step(LinkUp{{1}});
  welcome(0);
  EXPECT_EQ(receive(1, Refuse{"disk 0 is too small"}),
            (Lines{"DropBackup(1, refused: disk 0 is too small)", "StartFullSync(0)"}));
}

TEST_F(PrimaryScript, AnotherVersionIsRefused) {
  start(1);
  step(LinkUp{{0}});
  EXPECT_EQ(receive(0, Welcome{5, {4}, {}}),
            (Lines{"Send(0, Goodbye(dropped: speaks protocol version 5, not 4))",
                   "DropBackup(0, speaks protocol version 5, not 4)", "Unprotected"}));
}

// A host that was lost is started as it was the first time; the other took over meanwhile.
TEST_F(PrimaryScript, AStalePrimaryWhoseBackupLeadsIsFenced) {
  start(2);
  step(LinkUp{{0}});
  step(LinkUp{{1}});
  welcome(1);
  EXPECT_EQ(receive(0, Hello{}),
            (Lines{"Send(0, Goodbye(dropped: backup 0 leads a machine itself))", "DropBackup(0, backup 0 leads a machine itself)",
                   "Send(1, Goodbye(dropped: backup 0 leads a machine itself))", "DropBackup(1, backup 0 leads a machine itself)",
                   "Fenced(backup 0 leads a machine itself: this host can be its backup, with --join)"}));
  EXPECT_EQ(step(EpochClosed{{1}, false}), Lines{});
}

// One that an operator names while the machine runs is only turned away.
TEST_F(PrimaryScript, AJoinerThatLeadsItselfIsDropped) {
  protect(1);
  step(BackupJoined{{1}});
  step(LinkUp{{1}});
  EXPECT_EQ(receive(1, Hello{}), (Lines{"Send(1, Goodbye(dropped: backup 1 leads a machine itself))",
                                        "DropBackup(1, backup 1 leads a machine itself)"}));
}

TEST_F(PrimaryScript, NothingIsCommittedWhileNobodyIsSynced) {
  start(1);
  step(LinkUp{{0}});
  welcome(0);
  EXPECT_EQ(close(1), Lines{});
  EXPECT_EQ(primary_->committed(), EpochId{0});
}

TEST_F(PrimaryScript, CommitWaitsForEveryRequiredBackup) {
  protect(3);
  close(1);
  close(2);
  EXPECT_EQ(ack(0, 2), Lines{});
  EXPECT_EQ(ack(1, 1), Lines{});
  EXPECT_EQ(ack(2, 2), (Lines{"Committed(1)"}));
  EXPECT_EQ(ack(1, 2), (Lines{"Committed(2)"}));
}

TEST_F(PrimaryScript, ASettlingBackupIsRequired) {
  start(1);
  step(LinkUp{{0}});
  welcome(0);
  step(SyncFinished{{0}, {0}});
  EXPECT_EQ(close(1), Lines{});
  EXPECT_TRUE(primary_->required({0}));
  // Its first Ack may speak for more than the sync.
  EXPECT_EQ(ack(0, 1), (Lines{"Protected(0)", "Committed(1)"}));
}

TEST_F(PrimaryScript, ABackupThatFallsAwayAdvancesThePendingCommit) {
  protect(2);
  close(1);
  close(2);
  ack(0, 2);
  EXPECT_EQ(step(LinkDown{{1}, "reset by peer"}), (Lines{"ClaimTerm(5, with 1)"}));
  EXPECT_EQ(won(5), (Lines{"Send(0, NewTerm(5))", "DropBackup(1, reset by peer)", "Committed(2)"}));
}

TEST_F(PrimaryScript, TheLastBackupGoneCommitsEverythingClosed) {
  protect(1);
  close(1);
  close(2);
  EXPECT_EQ(step(LinkDown{{0}, "reset by peer"}), (Lines{"ClaimTerm(5)"}));
  EXPECT_EQ(won(5), (Lines{"DropBackup(0, reset by peer)", "Unprotected", "Committed(2)"}));
  EXPECT_EQ(close(3), (Lines{"Committed(3)"}));
  EXPECT_TRUE(primary_->unprotected());
}

TEST_F(PrimaryScript, AloneAFlushMustBeDurableHereFirst) {
  protect(1);
  close(1, true);
  EXPECT_EQ(link_down(0), (Lines{"ClaimTerm(5)"}));
  EXPECT_EQ(won(5), (Lines{"DropBackup(0, x)", "Unprotected", "Committed(1, durable first)"}));
  EXPECT_EQ(close(2), (Lines{"Committed(2)"}));
  EXPECT_EQ(close(3, true), (Lines{"Committed(3, durable first)"}));
}

TEST_F(PrimaryScript, AFlushIsCommittedOnlyWhenThePreviousFlushIsDurableHere) {
  protect(1);
  close(1, true);
  EXPECT_EQ(ack(0, 1), (Lines{"Committed(1)"}));
  close(2);
  EXPECT_EQ(ack(0, 2), (Lines{"Committed(2)"}));
  close(3, true);
  close(4);
  EXPECT_EQ(ack(0, 4), Lines{});
  EXPECT_EQ(durable(2), (Lines{"Committed(4)"}));
  close(5, true);
  EXPECT_EQ(ack(0, 5), Lines{});
  EXPECT_EQ(durable(3), (Lines{"Committed(5)"}));
}

TEST_F(PrimaryScript, EpochsBeforeAHeldFlushAreCommitted) {
  protect(1);
  close(1, true);
  close(2);
  close(3, true);
  EXPECT_EQ(ack(0, 3), (Lines{"Committed(2)"}));
  EXPECT_EQ(durable(2), (Lines{"Committed(3)"}));
}

TEST_F(PrimaryScript, AHeldFlushIsReleasedWhenAlone) {
  protect(1);
  close(1, true);
  close(2, true);
  EXPECT_EQ(ack(0, 2), (Lines{"Committed(1)"}));
  link_down(0);
  EXPECT_EQ(won(5), (Lines{"DropBackup(0, x)", "Unprotected", "Committed(2, durable first)"}));
}

struct Violation {
  const char* name;
  Message message;
  const char* reason;
};

TEST_F(PrimaryScript, ViolationsByAProtectingBackup) {
  const Violation violations[] = {
      {"ack of the future", Ack{{2}}, "Ack(2), last closed is 1"},
      {"ack twice", Ack{{0}}, "Ack(0) after Ack(0)"},
      {"welcome again", Welcome{kProtocolVersion, {4}, {}}, "Welcome out of place"},
      {"late refusal", Refuse{"no"}, "Refuse out of place"},
      {"late digests", DiskDigests{{0}, 0, 1}, "DiskDigests out of place"},
      {"a late mark", SyncMark{1}, "SyncMark out of place"},
      {"a primary's message", EpochOpen{{1}}, "a backup sent EpochOpen"},
      {"a hello", Hello{}, "a backup sent Hello"},
  };
  for (const Violation& violation : violations) {
    SCOPED_TRACE(violation.name);
    protect(1);
    close(1);
    const std::string reason = std::string("protocol violation: ") + violation.reason;
    EXPECT_EQ(receive(0, violation.message), (Lines{"ClaimTerm(5)"}));
    EXPECT_EQ(won(5),
              (Lines{"Send(0, Goodbye(dropped: " + reason + "))", "DropBackup(0, " + reason + ")",
                     "Unprotected", "Committed(1)"}));
  }
}

TEST_F(PrimaryScript, AcksGoingBackwardsAreAViolation) {
  protect(2);
  close(1);
  close(2);
  ack(0, 2);
  EXPECT_EQ(ack(0, 1), (Lines{"ClaimTerm(5, with 1)"}));
  EXPECT_EQ(won(5), (Lines{"Send(1, NewTerm(5))",
                           "Send(0, Goodbye(dropped: protocol violation: Ack(1) after Ack(2)))",
                           "DropBackup(0, protocol violation: Ack(1) after Ack(2))"}));
}

TEST_F(PrimaryScript, AnAckBeforeTheSyncIsFinishedIsAViolation) {
  start(1);
  step(LinkUp{{0}});
  EXPECT_EQ(ack(0, 0).back(), "Unprotected");
  start(1);
  step(LinkUp{{0}});
  welcome(0);
  EXPECT_EQ(ack(0, 0),
            (Lines{"Send(0, Goodbye(dropped: protocol violation: Ack(0) before the full sync))",
                   "DropBackup(0, protocol violation: Ack(0) before the full sync)", "Unprotected"}));
}

TEST_F(PrimaryScript, AWelcomeToAnotherTermIsAViolation) {
  start(1);
  step(LinkUp{{0}});
  EXPECT_EQ(receive(0, Welcome{kProtocolVersion, {5}, {}}).at(1),
            "DropBackup(0, protocol violation: Welcome to another machine or term)");
}

TEST_F(PrimaryScript, HeartbeatsGoOutEveryInterval) {
  protect(2);
  EXPECT_EQ(step(Tick{}), Lines{});
  EXPECT_EQ(primary_->next_deadline(), clock_.now() + 100ms);
  clock_.advance(100ms);
  EXPECT_EQ(step(Tick{}), (Lines{"Send(0, Heartbeat(1))", "Send(1, Heartbeat(1))"}));
  EXPECT_EQ(step(Tick{}), Lines{});
  clock_.advance(150ms);
  EXPECT_EQ(step(Tick{}), (Lines{"Send(0, Heartbeat(2))", "Send(1, Heartbeat(2))"}));
}

TEST_F(PrimaryScript, ASilentBackupIsDropped) {
  protect(2);
  close(1);
  ack(0, 1);
  clock_.advance(999ms);
  step(Tick{});
  EXPECT_EQ(receive(0, Heartbeat{1}), Lines{});
  clock_.advance(1ms);
  EXPECT_EQ(step(Tick{}), (Lines{"ClaimTerm(5, with 1)"}));
  EXPECT_EQ(won(5), (Lines{"Send(0, NewTerm(5))", "Send(1, Goodbye(dropped: silent for 1000 ms))",
                           "DropBackup(1, silent for 1000 ms)", "Committed(1)"}));
}

TEST_F(PrimaryScript, BytesOfAnUnfinishedMessageCountAsLife) {
  protect(1);
  clock_.advance(900ms);
  step(Heard{{0}, clock_.now()});
  clock_.advance(900ms);
  EXPECT_EQ(step(Tick{}), (Lines{"Send(0, Heartbeat(1))"}));
  // An older time than what is known changes nothing.
  step(Heard{{0}, clock_.now() - 950ms});
  clock_.advance(100ms);
  EXPECT_EQ(step(Tick{}), (Lines{"ClaimTerm(5)"}));
}

TEST_F(PrimaryScript, SilenceCountsFromTheFirstLinkOn) {
  start(1);
  EXPECT_EQ(primary_->next_deadline(), std::nullopt);
  step(LinkUp{{0}});
  clock_.advance(1s);
  EXPECT_EQ(step(Tick{}).back(), "Unprotected");
  EXPECT_EQ(primary_->next_deadline(), std::nullopt);
}

TEST_F(PrimaryScript, ADroppedBackupIsHeardNoMore) {
  protect(2);
  link_down(0);
  won(5);
  EXPECT_EQ(ack(0, 77), Lines{});
  EXPECT_EQ(step(LinkDown{{0}, "again"}), Lines{});
  EXPECT_EQ(step(SyncFinished{{0}, {0}}), Lines{});
}

TEST_F(PrimaryScript, ABackupThatLeavesIsDropped) {
  protect(1);
  EXPECT_EQ(receive(0, Goodbye{GoodbyeReason::kStopped, {}}), (Lines{"ClaimTerm(5)"}));
  EXPECT_EQ(won(5), (Lines{"DropBackup(0, left: stopped)", "Unprotected"}));
}

TEST_F(PrimaryScript, LosingABackupDuringItsSyncKeepsTheOthers) {
  start(2);
  step(LinkUp{{0}});
  step(LinkUp{{1}});
  welcome(0);
  welcome(1);
  step(SyncFinished{{0}, {0}});
  ack(0, 0);
  close(1);
  EXPECT_EQ(step(LinkDown{{1}, "x"}), (Lines{"DropBackup(1, x)"}));
  EXPECT_EQ(ack(0, 1), (Lines{"Committed(1)"}));
}

TEST_F(PrimaryScript, StopSaysGoodbyeToAllAndEnds) {
  protect(2);
  EXPECT_EQ(step(Stop{GoodbyeReason::kPoweredOff}),
            (Lines{"Send(0, Goodbye(powered off))", "Send(1, Goodbye(powered off))"}));
  EXPECT_EQ(step(LinkDown{{0}, "closed"}), Lines{});
  EXPECT_EQ(ack(1, 0), Lines{});
  EXPECT_EQ(primary_->next_deadline(), std::nullopt);
}

// Arbitration.

TEST_F(PrimaryScript, ALostBackupHoldsTheCommitAtItsAcknowledgement) {
  protect(2);
  close(1);
  close(2);
  ack(1, 1);
  EXPECT_EQ(link_down(1), (Lines{"ClaimTerm(5, with 1)"}));
  EXPECT_EQ(primary_->state({1}), State::kLost);
  EXPECT_FALSE(primary_->required({1}));
  EXPECT_EQ(ack(0, 2), (Lines{"Committed(1)"}));
  EXPECT_EQ(close(3), Lines{});
  EXPECT_EQ(ack(0, 3), Lines{});
  EXPECT_EQ(won(5), (Lines{"Send(0, NewTerm(5))", "DropBackup(1, x)", "Committed(3)"}));
  EXPECT_EQ(primary_->term(), Term{5});
}

TEST_F(PrimaryScript, ALostBackupIsNotHeardNorBeatenFor) {
  protect(2);
  link_down(1);
  close(1);
  EXPECT_EQ(ack(1, 1), Lines{});
  EXPECT_EQ(ack(0, 1), Lines{});
  clock_.advance(100ms);
  EXPECT_EQ(step(Tick{}), (Lines{"Send(0, Heartbeat(1))"}));
  EXPECT_EQ(step(LinkDown{{1}, "again"}), Lines{});
}

TEST_F(PrimaryScript, ABackupWhoseSyncEndIsOnItsWayNeedsAClaim) {
  start(1);
  step(LinkUp{{0}});
  welcome(0);
  close(1);
  step(SyncFinished{{0}, {1}});
  EXPECT_EQ(link_down(0), (Lines{"ClaimTerm(5)"}));
  EXPECT_EQ(primary_->committed(), EpochId{0});
  EXPECT_EQ(won(5), (Lines{"DropBackup(0, x)", "Unprotected", "Committed(1)"}));
}

TEST_F(PrimaryScript, HalfASyncIsDroppedWithoutAClaim) {
  start(1);
  step(LinkUp{{0}});
  welcome(0);
  clock_.advance(1s);
  EXPECT_EQ(step(Tick{}), (Lines{"Send(0, Goodbye(dropped: silent for 1000 ms))",
                                 "DropBackup(0, silent for 1000 ms)", "Unprotected"}));
}

TEST_F(PrimaryScript, AFencedPrimaryNeverCommitsAgainAndSaysNothing) {
  protect(3);
  close(1);
  ack(0, 1);
  ack(1, 1);
  link_down(2);
  EXPECT_EQ(lost(5), (Lines{"Fenced(term 5 is another replica's)"}));
  EXPECT_TRUE(primary_->fenced());
  EXPECT_EQ(primary_->next_deadline(), std::nullopt);
  EXPECT_EQ(close(2), Lines{});
  EXPECT_EQ(ack(0, 2), Lines{});
  EXPECT_EQ(step(LinkDown{{0}, "closed"}), Lines{});
  clock_.advance(2s);
  EXPECT_EQ(step(Tick{}), Lines{});
  EXPECT_EQ(step(Stop{}), Lines{});
  EXPECT_EQ(primary_->committed(), EpochId{0});
  EXPECT_TRUE(primary_->fenced());
}

TEST_F(PrimaryScript, AnUnreachableArbiterIsAskedAgain) {
  protect(1);
  close(1);
  EXPECT_EQ(link_down(0), (Lines{"ClaimTerm(5)"}));
  EXPECT_EQ(primary_->next_deadline(), std::nullopt);
  clock_.advance(5s);
  EXPECT_EQ(step(Tick{}), Lines{});
  EXPECT_EQ(unreachable(), Lines{});
  EXPECT_EQ(primary_->next_deadline(), clock_.now() + 200ms);
  clock_.advance(199ms);
  EXPECT_EQ(step(Tick{}), Lines{});
  clock_.advance(1ms);
  EXPECT_EQ(step(Tick{}), (Lines{"ClaimTerm(5)"}));
  EXPECT_EQ(step(Tick{}), Lines{});
  EXPECT_EQ(won(5), (Lines{"DropBackup(0, x)", "Unprotected", "Committed(1)"}));
}

// It may find out that it is a member, and claim the term after that.
TEST_F(PrimaryScript, AMemberThatIsLostWhileTheClaimIsDecidedNeedsTheNextTerm) {
  protect(3);
  close(1);
  ack(0, 1);
  EXPECT_EQ(link_down(1), (Lines{"ClaimTerm(5, with 2)"}));
  EXPECT_EQ(receive(2, Ack{{9}}), Lines{});
  EXPECT_EQ(won(5), (Lines{"Send(0, NewTerm(5))", "DropBackup(1, x)", "ClaimTerm(6, with 1)"}));
  EXPECT_EQ(primary_->state({2}), State::kLost);
  EXPECT_EQ(primary_->term(), Term{5});
  EXPECT_EQ(won(6), (Lines{"Send(0, NewTerm(6))", "Send(2, Goodbye(dropped: protocol violation: Ack(9), last closed is 1))",
                           "DropBackup(2, protocol violation: Ack(9), last closed is 1)", "Committed(1)"}));
}

// The arbiter may have decided by the first question.
TEST_F(PrimaryScript, AClaimIsAskedAgainWithTheSameMembers) {
  protect(2);
  EXPECT_EQ(link_down(1), (Lines{"ClaimTerm(5, with 1)"}));
  unreachable();
  link_down(0);
  clock_.advance(200ms);
  EXPECT_EQ(step(Tick{}), (Lines{"ClaimTerm(5, with 1)"}));
  EXPECT_EQ(won(5), (Lines{"DropBackup(1, x)", "ClaimTerm(6)"}));
  EXPECT_EQ(won(6), (Lines{"DropBackup(0, x)", "Unprotected"}));
}

TEST_F(PrimaryScript, WhoIsReleasedWhileAClaimNamesItNeedsTheNextTerm) {
  protect(2);
  EXPECT_EQ(link_down(1), (Lines{"ClaimTerm(5, with 1)"}));
  EXPECT_EQ(step(Release{{0}}), Lines{});
  EXPECT_EQ(won(5), (Lines{"Send(0, NewTerm(5))", "DropBackup(1, x)", "ClaimTerm(6)"}));
  EXPECT_TRUE(primary_->required({0}));
  EXPECT_EQ(won(6), (Lines{"Send(0, Goodbye(dropped: given up by the operator))", "DropBackup(0, given up by the operator)",
                           "Unprotected"}));
}

// Required since, and named by nobody: the term it could claim is taken.
TEST_F(PrimaryScript, WhoJoinsWhileAClaimIsDecidedIsCoveredByIt) {
  start(2);
  step(LinkUp{{0}});
  step(LinkUp{{1}});
  welcome(0);
  welcome(1);
  step(SyncFinished{{0}, {0}});
  EXPECT_EQ(link_down(0), (Lines{"ClaimTerm(5)"}));
  step(SyncFinished{{1}, {0}});
  EXPECT_EQ(link_down(1), Lines{});
  EXPECT_EQ(won(5), (Lines{"DropBackup(0, x)", "DropBackup(1, x)", "Unprotected"}));
}

TEST_F(PrimaryScript, MembersAreNamedByWhatTheySaidInTheirWelcome) {
  start(2);
  const ReplicaId other{{std::byte{7}}};
  for (std::uint32_t b = 0; b < 2; ++b) step(LinkUp{{b}});
  welcome(0);
  receive(1, Welcome{kProtocolVersion, {4}, {}, other});
  for (std::uint32_t b = 0; b < 2; ++b) step(SyncFinished{{b}, {0}});
  const auto effects = primary_->step(LinkDown{{0}, "x"}, clock_.now());
  ASSERT_EQ(effects.size(), 1u);
  EXPECT_EQ(std::get<ClaimTerm>(effects[0]), (ClaimTerm{{5}, {other}}));
}

TEST_F(PrimaryScript, ALossAfterTheTermIsWonClaimsTheNext) {
  protect(2);
  link_down(1);
  won(5);
  EXPECT_EQ(link_down(0), (Lines{"ClaimTerm(6)"}));
  EXPECT_EQ(won(6), (Lines{"DropBackup(0, x)", "Unprotected"}));
}

TEST_F(PrimaryScript, ABackupInItsSyncLearnsTheNewTerm) {
  start(2);
  for (std::uint32_t b = 0; b < 2; ++b) step(LinkUp{{b}});
  for (std::uint32_t b = 0; b < 2; ++b) welcome(b);
  step(SyncFinished{{0}, {0}});
  link_down(0);
  EXPECT_EQ(won(5), (Lines{"Send(1, NewTerm(5))", "DropBackup(0, x)", "Unprotected"}));
}

TEST_F(PrimaryScript, StopWhileClaimingReachesTheLostToo) {
  protect(3);
  receive(1, Ack{{9}});
  link_down(2);
  EXPECT_EQ(step(Stop{GoodbyeReason::kPoweredOff}),
            (Lines{"Send(0, Goodbye(powered off))", "Send(1, Goodbye(powered off))"}));
  EXPECT_EQ(won(5), Lines{});
  EXPECT_EQ(primary_->next_deadline(), std::nullopt);
}

// Re-protection.

TEST_F(PrimaryScript, AloneFromTheStartItIsUnprotectedAndHoldsNothing) {
  promote();
  EXPECT_TRUE(primary_->unprotected());
  EXPECT_EQ(primary_->next_deadline(), std::nullopt);
  EXPECT_EQ(step(Tick{}), Lines{});
  EXPECT_EQ(close(31), (Lines{"Committed(31)"}));
  EXPECT_EQ(close(32, true), (Lines{"Committed(32, durable first)"}));
}

TEST_F(PrimaryScript, AJoinerMakesAPromotedReplicaProtected) {
  promote();
  close(31);
  EXPECT_EQ(step(BackupJoined{{0}}), Lines{});
  EXPECT_EQ(primary_->state({0}), State::kConnecting);
  EXPECT_EQ(step(LinkUp{{0}}), (Lines{std::string("Send(0, ") + kHello + ")"}));
  EXPECT_EQ(welcome(0), (Lines{"StartFullSync(0)"}));
  // Its sync holds up nothing.
  EXPECT_EQ(close(32), (Lines{"Committed(32)"}));
  EXPECT_TRUE(primary_->unprotected());
  EXPECT_EQ(step(SyncFinished{{0}, {32}}), (Lines{"Replicating"}));
  EXPECT_FALSE(primary_->unprotected());
  EXPECT_TRUE(primary_->required({0}));
  EXPECT_EQ(close(33), Lines{});
  EXPECT_EQ(ack(0, 32), (Lines{"Protected(0)"}));
  EXPECT_EQ(ack(0, 33), (Lines{"Committed(33)"}));
}

TEST_F(PrimaryScript, ALostJoinerNeedsTheNextTerm) {
  promote();
  step(BackupJoined{{0}});
  step(LinkUp{{0}});
  welcome(0);
  step(SyncFinished{{0}, {30}});
  close(31);
  EXPECT_EQ(link_down(0), (Lines{"ClaimTerm(5)"}));
  EXPECT_EQ(close(32), Lines{});
  EXPECT_EQ(won(5), (Lines{"DropBackup(0, x)", "Unprotected", "Committed(32)"}));
}

TEST_F(PrimaryScript, AJoinerLostBeforeItsSyncEndedIsDroppedAndTheNextMayCome) {
  promote();
  step(BackupJoined{{0}});
  EXPECT_EQ(step(LinkDown{{0}, "never came up"}), (Lines{"DropBackup(0, never came up)"}));
  step(BackupJoined{{1}});
  step(LinkUp{{1}});
  EXPECT_EQ(receive(1, Refuse{"no"}), (Lines{"DropBackup(1, refused: no)"}));
  step(BackupJoined{{2}});
  step(LinkUp{{2}});
  welcome(2);
  EXPECT_EQ(link_down(2), (Lines{"DropBackup(2, x)"}));
  EXPECT_EQ(close(31), (Lines{"Committed(31)"}));
  EXPECT_EQ(step(BackupJoined{{3}}), Lines{});
  EXPECT_EQ(primary_->alive(), 1);
  // What is still said of those who are forgotten changes nothing.
  EXPECT_EQ(step(SyncFinished{{2}, {31}}), Lines{});
  EXPECT_EQ(step(LinkDown{{2}, "again"}), Lines{});
  EXPECT_EQ(step(Heard{{1}, clock_.now()}), Lines{});
  EXPECT_EQ(ack(0, 31), Lines{});
  EXPECT_EQ(primary_->state({2}), State::kDropped);
  EXPECT_TRUE(primary_->unprotected());
}

TEST_F(PrimaryScript, ProtectionComesAndGoesAndEpochsAndTermsGoOn) {
  protect(1);
  close(1, true);
  ack(0, 1);
  durable(1);
  link_down(0);
  EXPECT_EQ(won(5), (Lines{"DropBackup(0, x)", "Unprotected"}));
  close(2);
  for (std::uint32_t id = 1; id < 5; ++id) {
    SCOPED_TRACE(id);
    const std::uint64_t term = 4 + id;
    EXPECT_EQ(step(BackupJoined{{id}}), Lines{});
    EXPECT_EQ(step(LinkUp{{id}}).at(0).find("term " + std::to_string(term) + ",") == std::string::npos, false);
    EXPECT_EQ(receive(id, Welcome{kProtocolVersion, {term}, {}}), (Lines{"StartFullSync(" + std::to_string(id) + ")"}));
    const std::uint64_t epoch = primary_->closed().value;
    EXPECT_EQ(step(SyncFinished{{id}, {epoch}}), (Lines{"Replicating"}));
    EXPECT_EQ(ack(id, epoch), (Lines{"Protected(" + std::to_string(id) + ")"}));
    EXPECT_EQ(close(epoch + 1), Lines{});
    EXPECT_EQ(ack(id, epoch + 1), (Lines{"Committed(" + std::to_string(epoch + 1) + ")"}));
    EXPECT_EQ(link_down(id), (Lines{"ClaimTerm(" + std::to_string(term + 1) + ")"}));
    EXPECT_EQ(won(term + 1).back(), "Unprotected");
  }
}

TEST_F(PrimaryScript, AFlushLetOutAloneMustBeDurableBeforeTheNextIsCommittedWithAJoiner) {
  promote();
  EXPECT_EQ(close(31, true), (Lines{"Committed(31, durable first)"}));
  step(BackupJoined{{0}});
  step(LinkUp{{0}});
  welcome(0);
  step(SyncFinished{{0}, {31}});
  close(32, true);
  EXPECT_EQ(ack(0, 32), (Lines{"Protected(0)"}));
  EXPECT_EQ(durable(31), (Lines{"Committed(32)"}));
}

TEST_F(PrimaryScript, WhoJoinsAProtectedMachineCountsFromItsOwnSyncOn) {
  protect(1);
  close(1);
  ack(0, 1);
  step(BackupJoined{{1}});
  step(LinkUp{{1}});
  EXPECT_EQ(welcome(1), (Lines{"StartFullSync(1)"}));
  close(2);
  EXPECT_EQ(ack(0, 2), (Lines{"Committed(2)"}));
  EXPECT_EQ(step(SyncFinished{{1}, {2}}), Lines{});
  close(3);
  EXPECT_EQ(ack(0, 3), Lines{});
  EXPECT_EQ(ack(1, 3), (Lines{"Protected(1)", "Committed(3)"}));
}

TEST_F(PrimaryScript, HalfASyncVouchesForNothingWhenTheLastRequiredIsGone) {
  protect(1);
  step(BackupJoined{{1}});
  step(LinkUp{{1}});
  welcome(1);
  close(1);
  EXPECT_EQ(link_down(0), (Lines{"ClaimTerm(5)"}));
  EXPECT_EQ(won(5), (Lines{"Send(1, NewTerm(5))", "DropBackup(0, x)", "Unprotected", "Committed(1)"}));
  EXPECT_EQ(close(2), (Lines{"Committed(2)"}));
  EXPECT_EQ(step(SyncFinished{{1}, {2}}), (Lines{"Replicating"}));
  close(3);
  EXPECT_EQ(ack(1, 3), (Lines{"Protected(1)", "Committed(3)"}));
}

TEST_F(PrimaryScript, AnotherMayJoinWhenNoneIsJoiningAndNothingIsUndecided) {
  start(1);
  EXPECT_EQ(primary_->why_no_joiner(), "another backup is joining");
  protect(1);
  EXPECT_EQ(primary_->why_no_joiner(), "");
  step(BackupJoined{{1}});
  EXPECT_EQ(primary_->why_no_joiner(), "another backup is joining");
  step(LinkUp{{1}});
  welcome(1);
  step(SyncFinished{{1}, {0}});
  EXPECT_EQ(primary_->why_no_joiner(), "");
  link_down(0);
  EXPECT_EQ(primary_->why_no_joiner(), "a backup was lost or given up, and the arbiter has not decided yet");
  won(5);
  EXPECT_EQ(primary_->why_no_joiner(), "");
  protect(kMaxBackups);
  EXPECT_EQ(primary_->why_no_joiner(), "it has 3 backups already");
  step(HandOverTo{{1}});
  EXPECT_EQ(primary_->why_no_joiner(), "the machine is being handed over");
  step(Stop{});
  EXPECT_EQ(primary_->why_no_joiner(), "the machine ends here");
}

TEST_F(PrimaryScript, NobodyJoinsAFencedOrStoppedPrimary) {
  protect(1);
  link_down(0);
  lost(5);
  EXPECT_EQ(step(BackupJoined{{1}}), Lines{});
  EXPECT_EQ(step(LinkUp{{1}}), Lines{});
  EXPECT_EQ(primary_->state({1}), State::kDropped);
  promote();
  step(Stop{});
  EXPECT_EQ(step(BackupJoined{{0}}), Lines{});
  EXPECT_EQ(step(LinkUp{{0}}), Lines{});
}

TEST_F(PrimaryScript, BackupIdsCountUpAndFewAreAlive) {
  promote();
  EXPECT_DEATH(step(BackupJoined{{1}}), "invariant");
  for (std::uint32_t id = 0; id < kMaxBackups; ++id) step(BackupJoined{{id}});
  EXPECT_DEATH(step(BackupJoined{{0}}), "invariant");
  EXPECT_DEATH(step(BackupJoined{{kMaxBackups}}), "invariant");
  step(LinkDown{{1}, "x"});
  step(BackupJoined{{kMaxBackups}});
  EXPECT_EQ(primary_->alive(), kMaxBackups);
  EXPECT_DEATH((void)primary_->state({kMaxBackups + 1}), "invariant");
}

TEST_F(PrimaryScript, EventsOutOfOrderAreABug) {
  protect(1);
  EXPECT_DEATH(close(2), "invariant");
  EXPECT_DEATH(durable(1), "invariant");
  EXPECT_DEATH(step(LinkUp{{0}}), "invariant");
  EXPECT_DEATH(step(Tick{}); step(SyncFinished{{0}, {0}}), "invariant");
  link_down(0);
  EXPECT_DEATH(won(6), "invariant");
  EXPECT_DEATH(unreachable(); unreachable(), "invariant");
}

}  // namespace
}  // namespace pollux::protocol
