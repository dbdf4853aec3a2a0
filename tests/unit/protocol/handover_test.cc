// A planned handover and a backup that the operator gives up: both sides as scripts, and who leads when a message is lost.
#include "protocol/backup_replica.h"
#include "protocol/primary_replica.h"
#include "script.h"

namespace pollux::protocol {
namespace {

// The primary.

class PrimaryHandover : public ::testing::Test {
 protected:
  // In term 4, all backups protecting, epoch 1 committed.
  void protect(std::size_t backups) {
    PrimaryConfig config;
    config.hello.term = {4};
    config.backups = backups;
    config.timing = {100ms, 1s, 200ms, 5s};
    primary_.emplace(config);
    for (std::uint32_t b = 0; b < backups; ++b) step(primary::LinkUp{{b}});
    for (std::uint32_t b = 0; b < backups; ++b) receive(b, Welcome{kProtocolVersion, {4}, {}});
    for (std::uint32_t b = 0; b < backups; ++b) step(primary::SyncFinished{{b}, {0}});
    step(primary::EpochClosed{{1}, false});
    for (std::uint32_t b = 0; b < backups; ++b) receive(b, Ack{{1}});
    ASSERT_EQ(primary_->committed(), EpochId{1});
  }
  Lines step(const primary::Event& event) { return lines(primary_->step(event, clock_.now())); }
  Lines receive(std::uint32_t from, const Message& message) {
    return lines(primary_->receive({from}, message, clock_.now()));
  }
  Lines hand_over(std::uint32_t to) { return step(primary::HandOverTo{{to}}); }
  Lines release(std::uint32_t backup) { return step(primary::Release{{backup}}); }
  Lines won(std::uint64_t term) { return step(primary::TermWon{{term}}); }
  Lines lost(std::uint64_t term) { return step(primary::TermLost{{term}}); }

  Clock clock_;
  std::optional<PrimaryReplica> primary_;
};

TEST_F(PrimaryHandover, TheBackupTakesOver) {
  protect(1);
  EXPECT_EQ(hand_over(0), (Lines{"Send(0, HandOver(1))"}));
  EXPECT_TRUE(primary_->handing_over());
  EXPECT_EQ(receive(0, Goodbye{GoodbyeReason::kTookOver, {}}),
            (Lines{"DropBackup(0, backup 0 leads the machine now)", "HandedOver(5)"}));
  EXPECT_TRUE(primary_->fenced());
  EXPECT_EQ(step(primary::LinkDown{{0}, "x"}), Lines{});
  EXPECT_EQ(step(primary::Tick{}), Lines{});
}

TEST_F(PrimaryHandover, TheOthersAreSentAwayWhenItIsCertainWhoLeads) {
  protect(2);
  EXPECT_EQ(hand_over(1), (Lines{"Send(1, HandOver(1))"}));
  EXPECT_EQ(receive(1, Goodbye{GoodbyeReason::kTookOver, {}}),
            (Lines{"Send(0, Goodbye(took over: backup 1 leads the machine now))",
                   "DropBackup(0, backup 1 leads the machine now)", "DropBackup(1, backup 1 leads the machine now)",
                   "HandedOver(5)"}));
}

// HandOver never arrived, or the backup died with it: the term decides, and this side leads on.
TEST_F(PrimaryHandover, ALostMessageIsTakenBackByTheArbiterOnly) {
  protect(1);
  hand_over(0);
  EXPECT_EQ(step(primary::LinkDown{{0}, "x"}), (Lines{"ClaimTerm(5)"}));
  EXPECT_EQ(step(primary::ArbiterUnreachable{}), Lines{});
  clock_.advance(200ms);
  EXPECT_EQ(step(primary::Tick{}), (Lines{"ClaimTerm(5)"}));
  EXPECT_EQ(won(5), (Lines{"TakenBack(5, x)", "DropBackup(0, x)", "Unprotected"}));
  EXPECT_FALSE(primary_->handing_over());
  EXPECT_EQ(step(primary::EpochClosed{{2}, false}), (Lines{"Committed(2)"}));
}

// It took over, and its word for it was lost with the link.
TEST_F(PrimaryHandover, ALostAnswerIsHandedOverAllTheSame) {
  protect(2);
  hand_over(0);
  EXPECT_EQ(step(primary::LinkDown{{0}, "x"}), (Lines{"ClaimTerm(5, with 1)"}));
  // Without a word to the other: it may be the one that leads.
  EXPECT_EQ(lost(5), (Lines{"DropBackup(0, another replica leads the machine now)",
                            "DropBackup(1, another replica leads the machine now)", "HandedOver(5)"}));
  EXPECT_TRUE(primary_->fenced());
}

TEST_F(PrimaryHandover, TheOneThatAsksTheArbiterMayBeSilentForLonger) {
  protect(1);
  hand_over(0);
  clock_.advance(4900ms);
  EXPECT_EQ(step(primary::Tick{}), (Lines{"Send(0, Heartbeat(1))"}));
  clock_.advance(100ms);
  EXPECT_EQ(step(primary::Tick{}), (Lines{"ClaimTerm(5)"}));
  EXPECT_EQ(won(5), (Lines{"TakenBack(5, silent for 5000 ms)", "Send(0, Goodbye(dropped: silent for 5000 ms))",
                           "DropBackup(0, silent for 5000 ms)", "Unprotected"}));
}

// Its claim may take the very term: the handover's outcome decides for both.
TEST_F(PrimaryHandover, TheLossOfAnotherBackupMeanwhileIsNoClaim) {
  protect(2);
  hand_over(0);
  EXPECT_EQ(step(primary::LinkDown{{1}, "y"}), Lines{});
  EXPECT_EQ(receive(0, Goodbye{GoodbyeReason::kTookOver, {}}),
            (Lines{"DropBackup(0, backup 0 leads the machine now)", "DropBackup(1, backup 0 leads the machine now)",
                   "HandedOver(5)"}));
}

TEST_F(PrimaryHandover, TakenBackItDropsWhoeverWasLostMeanwhile) {
  protect(3);
  hand_over(0);
  step(primary::LinkDown{{1}, "y"});
  EXPECT_EQ(step(primary::LinkDown{{0}, "x"}), (Lines{"ClaimTerm(5, with 1)"}));
  EXPECT_EQ(won(5), (Lines{"TakenBack(5, x)", "Send(2, NewTerm(5))", "DropBackup(0, x)", "DropBackup(1, y)"}));
  EXPECT_EQ(step(primary::EpochClosed{{2}, false}), Lines{});
  EXPECT_EQ(receive(2, Ack{{2}}), (Lines{"Committed(2)"}));
}

TEST_F(PrimaryHandover, IsRefusedUntilEverythingIsCommitted) {
  protect(2);
  EXPECT_EQ(hand_over(7), (Lines{"HandoverRefused(7, there is no such backup)"}));
  step(primary::EpochClosed{{2}, false});
  EXPECT_EQ(hand_over(0), (Lines{"HandoverRefused(0, not every epoch is committed)"}));
  receive(0, Ack{{2}});
  receive(1, Ack{{2}});
  step(primary::LinkDown{{1}, "x"});
  EXPECT_EQ(hand_over(1), (Lines{"HandoverRefused(1, it is lost)"}));
  EXPECT_EQ(hand_over(0), (Lines{"HandoverRefused(0, a backup is lost or given up, and the arbiter has not decided yet)"}));
  won(5);
  EXPECT_EQ(hand_over(0), (Lines{"Send(0, HandOver(2))"}));
  EXPECT_EQ(hand_over(0), (Lines{"HandoverRefused(0, the machine is being handed over already)"}));
  EXPECT_EQ(release(0), (Lines{"ReleaseRefused(0, the machine is being handed over)"}));
}

TEST_F(PrimaryHandover, NobodyTakesOverUnasked) {
  protect(1);
  EXPECT_EQ(receive(0, Goodbye{GoodbyeReason::kTookOver, {}}), (Lines{"ClaimTerm(5)"}));
}

TEST_F(PrimaryHandover, AStopMeanwhileEndsThisSideOnly) {
  protect(2);
  hand_over(0);
  EXPECT_EQ(step(primary::Stop{}), (Lines{"Send(0, Goodbye(stopped))", "Send(1, Goodbye(stopped))"}));
  EXPECT_EQ(receive(0, Goodbye{GoodbyeReason::kTookOver, {}}), Lines{});
}

TEST_F(PrimaryHandover, NoEpochIsClosedMeanwhile) {
  protect(1);
  hand_over(0);
  EXPECT_DEATH((void)step(primary::EpochClosed{{2}, false}), "handover_");
}

// Given up by the operator: it may lose us at any moment, so its term comes first.

TEST_F(PrimaryHandover, AReleasedBackupCountsUntilItsTermIsTaken) {
  protect(2);
  EXPECT_EQ(release(0), (Lines{"ClaimTerm(5, with 1)"}));
  EXPECT_TRUE(primary_->required({0}));
  step(primary::EpochClosed{{2}, false});
  EXPECT_EQ(receive(1, Ack{{2}}), Lines{});
  step(primary::ArbiterUnreachable{});
  clock_.advance(200ms);
  EXPECT_EQ(step(primary::Tick{}), (Lines{"ClaimTerm(5, with 1)", "Send(0, Heartbeat(1))", "Send(1, Heartbeat(1))"}));
  EXPECT_EQ(won(5), (Lines{"Send(1, NewTerm(5))", "Send(0, Goodbye(dropped: given up by the operator))",
                           "DropBackup(0, given up by the operator)", "Committed(2)"}));
}

TEST_F(PrimaryHandover, TheLastOneReleasedLeavesItUnprotected) {
  protect(1);
  release(0);
  EXPECT_EQ(won(5), (Lines{"Send(0, Goodbye(dropped: given up by the operator))",
                           "DropBackup(0, given up by the operator)", "Unprotected"}));
}

TEST_F(PrimaryHandover, AReleasedBackupThatIsLostMeanwhileNeedsNoOtherClaim) {
  protect(2);
  release(0);
  EXPECT_EQ(step(primary::LinkDown{{0}, "x"}), Lines{});
  EXPECT_EQ(release(0), (Lines{"ReleaseRefused(0, it is lost, and dropped as soon as the arbiter says so)"}));
  EXPECT_EQ(won(5), (Lines{"Send(1, NewTerm(5))", "DropBackup(0, x)"}));
  EXPECT_EQ(release(0), (Lines{"ReleaseRefused(0, there is no such backup)"}));
}

TEST_F(PrimaryHandover, OneThatIsNotRequiredIsDroppedAtOnce) {
  protect(1);
  step(primary::LinkDown{{0}, "x"});
  won(5);
  step(primary::BackupJoined{{1}});
  step(primary::LinkUp{{1}});
  EXPECT_EQ(release(1), (Lines{"Send(1, Goodbye(dropped: given up by the operator))",
                               "DropBackup(1, given up by the operator)"}));
}

// The backup.

class BackupHandover : public ::testing::Test {
 protected:
  // Epoch 1 is whole and acknowledged.
  void SetUp() override {
    BackupConfig config;
    config.timing = {100ms, 1s, 200ms};
    backup_.emplace(config);
    step(backup::LinkUp{});
    Hello hello;
    hello.term = {4};
    hello.config_digest = digest_config({});
    receive(hello);
    step(backup::HelloAccepted{});
    receive(SyncEnd{});
    step(backup::EpochApplied{{0}});
    step(backup::EpochDurable{{0}});
    receive(EpochOpen{{1}});
    receive(EpochClose{{1}, 0, 0, 0, false, 8});
    ASSERT_EQ(backup_->last_acknowledged(), EpochId{1});
  }
  Lines step(const backup::Event& event) { return lines(backup_->step(event, clock_.now())); }
  Lines receive(const Message& message) { return lines(backup_->receive(message, clock_.now())); }

  Clock clock_;
  std::optional<BackupReplica> backup_;
};

TEST_F(BackupHandover, ItLeadsWhenItHasWonTheTermAndSaysSo) {
  EXPECT_EQ(receive(HandOver{{1}}), (Lines{"ClaimTerm(5)"}));
  EXPECT_TRUE(backup_->handed_over());
  EXPECT_EQ(step(backup::TermWon{{5}}),
            (Lines{"Send(Goodbye(took over))", "Promote(1, term 5, the primary handed over)"}));
}

TEST_F(BackupHandover, ThePrimarysWordAloneIsNothing) {
  receive(HandOver{{1}});
  EXPECT_EQ(step(backup::ArbiterUnreachable{}), Lines{});
  clock_.advance(200ms);
  EXPECT_EQ(step(backup::Tick{}), (Lines{"ClaimTerm(5)"}));
  EXPECT_EQ(step(backup::LinkDown{"x"}), Lines{});
  EXPECT_EQ(step(backup::TermLost{{5}}), (Lines{"Fenced(the primary handed over; term 5 is another replica's)"}));
}

TEST_F(BackupHandover, ItMustSpeakOfTheLastWholeEpoch) {
  EXPECT_EQ(receive(HandOver{{2}}),
            (Lines{"Send(Goodbye(dropped: protocol violation: HandOver(2) after epoch 1))",
                   "End(failed, the primary broke the protocol: HandOver(2) after epoch 1)"}));
}

TEST_F(BackupHandover, ItDoesNotComeWithinARecord) {
  receive(EpochOpen{{2}});
  EXPECT_EQ(receive(HandOver{{1}}).back(), "End(failed, the primary broke the protocol: HandOver(1) after epoch 1)");
}

TEST_F(BackupHandover, AnotherThatTookOverFencesIt) {
  receive(EpochOpen{{2}});
  EXPECT_EQ(receive(Goodbye{GoodbyeReason::kTookOver, "backup 1 leads the machine now"}),
            (Lines{"DiscardPartial(2)", "Fenced(backup 1 leads the machine now)"}));
  EXPECT_EQ(step(backup::LinkDown{"x"}), Lines{});
}

TEST_F(BackupHandover, ALostPrimaryIsToldNothing) {
  step(backup::LinkDown{"x"});
  EXPECT_FALSE(backup_->handed_over());
  EXPECT_EQ(step(backup::TermWon{{5}}), (Lines{"Promote(1, term 5, x)"}));
}

}  // namespace
}  // namespace pollux::protocol
