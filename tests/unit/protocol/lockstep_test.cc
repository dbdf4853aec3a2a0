// Lockstep as both state machines speak it: the rules P1 to P7 of Bressoud and Schneider by their names, how far the
// backup is behind, and what becomes of one that diverged.
#include "protocol/backup_replica.h"
#include "protocol/primary_replica.h"
#include "script.h"

namespace pollux::protocol {
namespace {

constexpr std::uint32_t kInputBytes = 40;
constexpr std::uint32_t kDigestBytesOfEpoch = 72;

class LockstepBackup : public ::testing::Test {
 protected:
  void start(OnDivergence on_divergence = OnDivergence::kHeal) {
    BackupConfig config;
    config.max_record_bytes = 1 << 20;
    config.timing = {100ms, 1s, 200ms};
    config.on_divergence = on_divergence;
    backup_.emplace(config);
    Hello hello;
    hello.term = {4};
    hello.strategy = Strategy::kLockstep;
    hello.config_digest = digest_config({});
    step(backup::LinkUp{});
    receive(hello);
    step(backup::HelloAccepted{});
  }
  void protect(OnDivergence on_divergence = OnDivergence::kHeal) {
    start(on_divergence);
    receive(SyncEnd{});
    executed(0);
    durable(0);
  }

  Lines step(const backup::Event& event) { return lines(backup_->step(event, clock_.now())); }
  Lines receive(const Message& message) { return lines(backup_->receive(message, clock_.now())); }
  Lines open(std::uint64_t epoch) { return receive(EpochOpen{{epoch}, RecordKind::kInputs}); }
  Lines inputs(std::uint64_t epoch) { return receive(EpochInputs{{epoch}, kInputBytes}); }
  Lines digest(std::uint64_t epoch) { return receive(EpochDigest{{epoch}, kDigestBytesOfEpoch}); }
  Lines close(std::uint64_t epoch, bool flushed = false) {
    return receive(close_of(epoch, flushed));
  }
  static EpochClose close_of(std::uint64_t epoch, bool flushed = false) {
    return {{epoch}, 0, 0, 0, flushed, 0, kInputBytes, kDigestBytesOfEpoch, clock_at(epoch)};
  }
  // The primary's, at the end of the epoch.
  static std::chrono::nanoseconds clock_at(std::uint64_t epoch) { return epoch * 1ms; }
  Lines record(std::uint64_t epoch, bool flushed = false) {
    open(epoch);
    inputs(epoch);
    digest(epoch);
    return close(epoch, flushed);
  }
  Lines heal(std::uint64_t epoch) {
    receive(EpochOpen{{epoch}, RecordKind::kPages});
    receive(EpochPages{{epoch}, {{{16}, 2, false}}});
    return receive(EpochClose{{epoch}, 2, 0, 0, false, 64});
  }
  Lines executed(std::uint64_t epoch) { return step(backup::EpochApplied{{epoch}}); }
  Lines durable(std::uint64_t epoch) { return step(backup::EpochDurable{{epoch}}); }
  Lines diverged(std::uint64_t epoch) { return step(backup::Diverged{{epoch}, 2, false}); }

  static Lines violation_in(std::uint64_t epoch, const std::string& what) {
    return {"DiscardPartial(" + std::to_string(epoch) + ")",
            "Send(Goodbye(dropped: protocol violation: " + what + "))",
            "End(failed, the primary broke the protocol: " + what + ")"};
  }

  Clock clock_;
  std::optional<BackupReplica> backup_;
};

TEST_F(LockstepBackup, P1EnvironmentValuesComeWithTheEpoch) {
  protect();
  EXPECT_EQ(record(1), (Lines{"ApplyEpoch(1)", "Send(Ack(1))"}));
  open(2);
  digest(2);
  EpochClose none = close_of(2);
  none.input_bytes = 0;
  EXPECT_EQ(receive(none), violation_in(2, "the record of epoch 2 lacks its inputs"));

  protect();  // nor may some of them be missing
  open(1);
  inputs(1);
  digest(1);
  EpochClose more = close_of(1);
  ++more.input_bytes;
  EXPECT_EQ(receive(more), violation_in(1, "the record of epoch 1 lacks its inputs"));
}

TEST_F(LockstepBackup, P2InterruptsOfThePrimaryWaitForTheEndOfTheirEpoch) {
  protect();
  EXPECT_EQ(open(1), Lines{});
  EXPECT_EQ(inputs(1), Lines{});  // the interrupts are in here, and nothing is delivered yet
  EXPECT_EQ(digest(1), Lines{});
  EXPECT_EQ(close(1), (Lines{"ApplyEpoch(1)", "Send(Ack(1))"}));
  // And none comes later than the end that it was delivered at.
  open(2);
  inputs(2);
  digest(2);
  EXPECT_EQ(inputs(2), violation_in(2, "inputs of epoch 2 after its digest"));
}

// Whenever they come: nothing follows from them, and they are no sign of life of the primary.
TEST_F(LockstepBackup, P3InterruptsOfItsOwnDevicesAreIgnored) {
  start();
  const auto ignored = [&] { return step(backup::OwnInterrupts{2}); };
  EXPECT_EQ(ignored(), Lines{});
  protect();
  EXPECT_EQ(ignored(), Lines{});
  open(1);
  EXPECT_EQ(ignored(), Lines{});
  inputs(1);
  digest(1);
  EXPECT_EQ(ignored(), Lines{});
  EXPECT_EQ(close(1), (Lines{"ApplyEpoch(1)", "Send(Ack(1))"}));
  EXPECT_EQ(ignored(), Lines{});
  executed(1);
  clock_.advance(1s);
  EXPECT_EQ(ignored(), Lines{});
  EXPECT_EQ(step(backup::Tick{}), (Lines{"ClaimTerm(5)"}));
  EXPECT_EQ(ignored(), Lines{});
  EXPECT_EQ(backup_->ignored_interrupts(), 12u);
  EXPECT_EQ(step(backup::TermWon{{5}}),
            (Lines{"Promote(1, term 5, silent for 1000 ms; outstanding I/O is uncertain)"}));
  EXPECT_DEATH(ignored(), "kPromoted");
}

// Also with an epoch that took nothing else from outside.
TEST_F(LockstepBackup, P4TheClockValueComesWithEachEpochBoundary) {
  const auto close_with = [&](std::optional<std::chrono::nanoseconds> clock) {
    open(2);
    inputs(2);
    digest(2);
    EpochClose close = close_of(2);
    close.clock = clock;
    return receive(close);
  };
  protect();
  record(1);
  EXPECT_EQ(close_with(std::nullopt), violation_in(2, "the record of epoch 2 lacks the clock value of its end"));
  protect();
  record(1);
  EXPECT_EQ(close_with(clock_at(1) - 1ns), violation_in(2, "the clock goes back in epoch 2"));
  protect();
  record(1);
  EXPECT_EQ(close_with(clock_at(1)), (Lines{"ApplyEpoch(2)", "Send(Ack(2))"}));
}

TEST_F(LockstepBackup, P5ItWaitsForTheEndOfTheEpoch) {
  protect();
  record(1);
  executed(1);
  open(2);
  inputs(2);
  EXPECT_EQ(digest(2), Lines{});
  EXPECT_EQ(backup_->last_whole(), EpochId{1});
  // And so it never is further than the primary.
  EXPECT_EQ(step(backup::LinkDown{"x"}), (Lines{"DiscardPartial(2)", "ClaimTerm(5)"}));
}

TEST_F(LockstepBackup, P6PromotionAtTheEndOfTheFailoverEpochWithItsInterrupts) {
  protect();
  record(1);
  record(2);
  open(3);
  inputs(3);
  // Every whole epoch is executed first, and delivers the interrupts in its inputs.
  EXPECT_EQ(step(backup::LinkDown{"reset by peer"}), (Lines{"DiscardPartial(3)"}));
  EXPECT_EQ(executed(1), Lines{});
  EXPECT_EQ(executed(2), (Lines{"ClaimTerm(5)"}));
  EXPECT_EQ(step(backup::TermWon{{5}}), (Lines{"Promote(2, term 5, reset by peer; outstanding I/O is uncertain)"}));
}

// Promote orders it: once, and after the last epoch that could complete a request.
TEST_F(LockstepBackup, P7OutstandingRequestsAreUncertainAfterThePromotionOnly) {
  protect();
  record(1, true);
  EXPECT_EQ(step(backup::LinkDown{"x"}), Lines{});
  EXPECT_EQ(executed(1), (Lines{"ClaimTerm(5)"}));
  EXPECT_EQ(durable(1), Lines{});
  EXPECT_EQ(step(backup::TermWon{{5}}), (Lines{"Promote(1, term 5, x; outstanding I/O is uncertain)"}));
  EXPECT_EQ(record(2), Lines{});

  protect();  // also one that was handed over to
  record(1);
  executed(1);
  EXPECT_EQ(receive(HandOver{{1}}), (Lines{"ClaimTerm(5)"}));
  EXPECT_EQ(step(backup::TermWon{{5}}),
            (Lines{"Send(Goodbye(took over))", "Promote(1, term 5, the primary handed over; outstanding I/O is uncertain)"}));
}

TEST_F(LockstepBackup, AnEpochIsAcknowledgedBeforeItIsExecuted) {
  protect();
  EXPECT_EQ(record(1), (Lines{"ApplyEpoch(1)", "Send(Ack(1))"}));
  EXPECT_EQ(record(2), (Lines{"ApplyEpoch(2)", "Send(Ack(2))"}));
  EXPECT_EQ(executed(1), Lines{});
  EXPECT_EQ(executed(2), (Lines{"Send(Executed(2))"}));
}

TEST_F(LockstepBackup, AFlushedEpochIsAcknowledgedWhenExecutedAndDurable) {
  protect();
  EXPECT_EQ(record(1, true), (Lines{"ApplyEpoch(1)", "MakeDurable(1)"}));
  EXPECT_EQ(executed(1), (Lines{"Send(Executed(1))"}));
  EXPECT_EQ(durable(1), (Lines{"Send(Ack(1))"}));
}

TEST_F(LockstepBackup, ExecutedIsToldEverySoOften) {
  protect();
  for (std::uint64_t epoch = 1; epoch <= 40; ++epoch) record(epoch);
  for (std::uint64_t epoch = 1; epoch <= 40; ++epoch) {
    const bool told = epoch % kExecutedStride == 0 || epoch == 40;
    EXPECT_EQ(executed(epoch), told ? Lines{"Send(Executed(" + std::to_string(epoch) + "))"} : Lines{}) << epoch;
  }
}

TEST_F(LockstepBackup, ADivergenceIsReportedAndHealed) {
  protect();
  record(1);
  record(2);
  EXPECT_EQ(diverged(1), (Lines{"Report(Divergence(1, pages 2))"}));
  EXPECT_EQ(backup_->staged_bytes(), 0u);
  // What it cannot execute is neither kept nor acknowledged.
  EXPECT_EQ(record(3), (Lines{"DiscardPartial(3)"}));
  EXPECT_EQ(record(4, true), (Lines{"DiscardPartial(4)"}));
  EXPECT_EQ(heal(5), (Lines{"ApplyEpoch(5)", "MakeDurable(5)"}));
  EXPECT_EQ(record(6), (Lines{"ApplyEpoch(6)"}));
  EXPECT_EQ(executed(5), Lines{});
  EXPECT_EQ(durable(5), (Lines{"Send(Ack(6))"}));
  EXPECT_EQ(executed(6), (Lines{"Send(Executed(6))"}));
}

TEST_F(LockstepBackup, ADivergenceWithinAnOpenRecordLosesThatToo) {
  protect();
  record(1);
  open(2);
  inputs(2);
  diverged(1);
  digest(2);
  EXPECT_EQ(close(2), (Lines{"DiscardPartial(2)"}));
  heal(3);
  EXPECT_EQ(executed(3), Lines{});
  EXPECT_EQ(durable(3), (Lines{"Send(Ack(3))"}));
}

TEST_F(LockstepBackup, HaltedByADivergenceItLeaves) {
  protect(OnDivergence::kHalt);
  record(1);
  EXPECT_EQ(diverged(1), (Lines{"Send(Goodbye(stopped: diverged in epoch 1))",
                                "End(failed, diverged in epoch 1: it cannot take over)"}));
}

TEST_F(LockstepBackup, AnUnhealedReplicaIsNeverPromoted) {
  protect();
  record(1);
  diverged(1);
  record(2);
  EXPECT_EQ(step(backup::LinkDown{"x"}), (Lines{"End(failed, x; diverged in epoch 1: it cannot take over)"}));

  protect();  // nor one that is half healed
  record(1);
  diverged(1);
  receive(EpochOpen{{2}, RecordKind::kPages});
  EXPECT_EQ(step(backup::LinkDown{"x"}),
            (Lines{"DiscardPartial(2)", "End(failed, x; diverged in epoch 1: it cannot take over)"}));

  protect();  // nor one that finds it while it executes what the primary left
  record(1);
  record(2);
  EXPECT_EQ(step(backup::LinkDown{"x"}), Lines{});
  EXPECT_EQ(executed(1), Lines{});
  EXPECT_EQ(diverged(2), (Lines{"End(failed, x; diverged in epoch 2: it cannot take over)"}));

  protect();  // a healed one is
  record(1);
  diverged(1);
  heal(2);
  EXPECT_EQ(step(backup::LinkDown{"x"}), Lines{});
  EXPECT_EQ(executed(2), (Lines{"ClaimTerm(5)"}));
  EXPECT_EQ(step(backup::TermWon{{5}}), (Lines{"Promote(2, term 5, x; outstanding I/O is uncertain)"}));
}

TEST_F(LockstepBackup, NoDivergedReplicaTakesAMachineOver) {
  protect();
  record(1);
  diverged(1);
  EXPECT_EQ(receive(HandOver{{1}}), (Lines{"Send(Goodbye(stopped: diverged in epoch 1))",
                                           "End(failed, diverged in epoch 1: it cannot take over)"}));
  protect();
  record(1);
  EXPECT_EQ(receive(HandOver{{1}}), Lines{});
  EXPECT_EQ(diverged(1),
            (Lines{"Send(Goodbye(stopped: diverged in epoch 1))",
                   "End(failed, the primary handed over; diverged in epoch 1: it cannot take over)"}));
  protect();
  record(1);
  receive(HandOver{{1}});
  EXPECT_EQ(executed(1), (Lines{"ClaimTerm(5)"}));
}

TEST_F(LockstepBackup, RecordsThatBreakTheRules) {
  protect();
  EXPECT_EQ(receive(EpochOpen{{1}, RecordKind::kPages}).back(),
            "End(failed, the primary broke the protocol: a record of pages, and no divergence)");
  protect();
  open(1);
  EXPECT_EQ(receive(EpochPages{{1}, {{{16}, 1, false}}}), violation_in(1, "EpochPages(1) outside its record"));
  protect();
  record(1);
  diverged(1);
  receive(EpochOpen{{2}, RecordKind::kPages});
  EXPECT_EQ(inputs(2), violation_in(2, "EpochInputs(2) outside its record"));
  protect();
  open(1);
  inputs(1);
  EXPECT_EQ(close(1), violation_in(1, "the record of epoch 1 lacks its digest"));
  protect();
  open(1);
  inputs(1);
  digest(1);
  EpochClose with_state = close_of(1);
  with_state.state_bytes = 64;
  EXPECT_EQ(receive(with_state), violation_in(1, "a record of inputs with a state"));
  protect();
  record(1);
  diverged(1);
  receive(EpochOpen{{2}, RecordKind::kPages});
  EXPECT_EQ(receive(EpochClose{{2}, 0, 0, 0, false, 64, 0, 0, clock_at(2)}), violation_in(2, "a record of pages with inputs"));
  protect();
  EXPECT_EQ(inputs(1).back(), "End(failed, the primary broke the protocol: EpochInputs(1) outside its record)");
  EXPECT_EQ(close(1), Lines{});
}

TEST_F(LockstepBackup, ARecordIsBounded) {
  protect();
  open(1);
  receive(EpochInputs{{1}, kMaxBodyBytes / 2});
  EXPECT_EQ(receive(EpochDigest{{1}, kMaxBodyBytes / 2}),
            violation_in(1, "the record of epoch 1 is longer than 1048576 bytes"));
}

class LockstepPrimary : public ::testing::Test {
 protected:
  void protect(std::uint32_t backups) {
    PrimaryConfig config;
    config.hello.term = {4};
    config.hello.strategy = Strategy::kLockstep;
    config.backups = backups;
    config.timing = {100ms, 1s, 200ms};
    primary_.emplace(config);
    for (std::uint32_t b = 0; b < backups; ++b) step(primary::LinkUp{{b}});
    for (std::uint32_t b = 0; b < backups; ++b) receive(b, Welcome{kProtocolVersion, {4}, {}});
    for (std::uint32_t b = 0; b < backups; ++b) step(primary::SyncFinished{{b}, {0}});
    for (std::uint32_t b = 0; b < backups; ++b) ack(b, 0);
  }

  Lines step(const primary::Event& event) { return lines(primary_->step(event, clock_.now())); }
  Lines receive(std::uint32_t from, const Message& message) {
    return lines(primary_->receive({from}, message, clock_.now()));
  }
  Lines close(std::uint64_t epoch) { return step(primary::EpochClosed{{epoch}}); }
  Lines ack(std::uint32_t from, std::uint64_t epoch) { return receive(from, Ack{{epoch}}); }
  Lines executed(std::uint32_t from, std::uint64_t epoch) { return receive(from, Executed{{epoch}}); }
  Lines diverged(std::uint32_t from, std::uint64_t epoch) { return receive(from, Divergence{{epoch}, 2, false}); }
  Lines heal(std::uint32_t backup, std::uint64_t epoch) { return step(primary::HealBegun{{backup}, {epoch}}); }

  Clock clock_;
  std::optional<PrimaryReplica> primary_;
};

TEST_F(LockstepPrimary, ExecutedByAllIsTheLeast) {
  protect(2);
  for (std::uint64_t epoch = 1; epoch <= 9; ++epoch) close(epoch);
  EXPECT_EQ(executed(0, 7), Lines{});
  EXPECT_EQ(executed(1, 3), (Lines{"ExecutedByAll(3)"}));
  EXPECT_EQ(executed(1, 8), (Lines{"ExecutedByAll(7)"}));
  EXPECT_EQ(executed(0, 9), (Lines{"ExecutedByAll(8)"}));
}

TEST_F(LockstepPrimary, NobodyWaitsForALostBackupToExecute) {
  protect(2);
  for (std::uint64_t epoch = 1; epoch <= 9; ++epoch) close(epoch);
  executed(0, 7);
  EXPECT_EQ(step(primary::LinkDown{{1}, "x"}), (Lines{"ExecutedByAll(7)", "ClaimTerm(5, with 1)"}));
}

TEST_F(LockstepPrimary, ItIsCommittedWhenAcknowledgedNotWhenExecuted) {
  protect(1);
  close(1);
  EXPECT_EQ(ack(0, 1), (Lines{"Committed(1)"}));
  EXPECT_EQ(executed(0, 1), (Lines{"ExecutedByAll(1)"}));
}

TEST_F(LockstepPrimary, ADivergedBackupIsHealedWhileCommitsWait) {
  protect(2);
  close(1);
  close(2);
  ack(0, 2);
  ack(1, 2);
  EXPECT_EQ(diverged(1, 1), (Lines{"Heal(1, Divergence(1, pages 2))"}));
  close(3);
  EXPECT_EQ(ack(0, 3), Lines{});
  EXPECT_EQ(heal(1, 4), Lines{});
  close(4);
  ack(0, 4);
  executed(0, 4);
  EXPECT_EQ(ack(1, 4), (Lines{"Healed(1, 4)", "Committed(4)", "ExecutedByAll(4)"}));
  close(5);
  EXPECT_EQ(diverged(1, 5), (Lines{"Heal(1, Divergence(5, pages 2))"}));
}

TEST_F(LockstepPrimary, ABackupLostWhileItIsHealedIsLostAsAny) {
  protect(1);
  close(1);
  diverged(0, 1);
  EXPECT_EQ(step(primary::LinkDown{{0}, "x"}), (Lines{"ClaimTerm(5)"}));
  EXPECT_EQ(heal(0, 2), Lines{});  // the engine was at it
  EXPECT_EQ(step(primary::TermWon{{5}}), (Lines{"DropBackup(0, x)", "Unprotected", "Committed(1)"}));
}

// Beside another backup: from the end of its sync on it counts like that one, and has executed everything before.
TEST_F(LockstepPrimary, AJoinerCountsFromTheEndOfItsSync) {
  protect(1);
  close(1);
  ack(0, 1);
  executed(0, 1);
  EXPECT_EQ(primary_->why_no_joiner(), "");
  step(primary::BackupJoined{{1}});
  step(primary::LinkUp{{1}});
  EXPECT_EQ(receive(1, Welcome{kProtocolVersion, {4}, {}}), (Lines{"StartFullSync(1)"}));
  close(2);
  EXPECT_EQ(ack(0, 2), (Lines{"Committed(2)"}));
  EXPECT_EQ(step(primary::SyncFinished{{1}, {2}}), Lines{});
  EXPECT_EQ(executed(0, 2), (Lines{"ExecutedByAll(2)"}));
  close(3);
  ack(0, 3);
  EXPECT_EQ(executed(0, 3), Lines{});
  EXPECT_EQ(ack(1, 2), (Lines{"Protected(1)"}));
  EXPECT_EQ(ack(1, 3), (Lines{"Committed(3)"}));
  EXPECT_EQ(diverged(1, 3), (Lines{"Heal(1, Divergence(3, pages 2))"}));
  EXPECT_EQ(heal(1, 4), Lines{});
  close(4);
  EXPECT_EQ(ack(1, 4), (Lines{"Healed(1, 4)", "ExecutedByAll(3)"}));
}

// None of an epoch before it.
TEST_F(LockstepPrimary, AJoinerHasNoDivergenceBeforeTheEndOfItsSync) {
  protect(1);
  close(1);
  ack(0, 1);
  step(primary::BackupJoined{{1}});
  step(primary::LinkUp{{1}});
  receive(1, Welcome{kProtocolVersion, {4}, {}});
  step(primary::SyncFinished{{1}, {1}});
  EXPECT_EQ(diverged(1, 1), (Lines{"ClaimTerm(5, with 1)"}));
}

TEST_F(LockstepPrimary, NothingIsHandedOverToADivergedBackup) {
  protect(1);
  close(1);
  ack(0, 1);
  diverged(0, 1);
  EXPECT_EQ(step(primary::HandOverTo{{0}}), (Lines{"HandoverRefused(0, it diverged and is being healed)"}));
}

TEST_F(LockstepPrimary, WhatBreaksTheRules) {
  const auto loses = [&](const Message& message) {
    return receive(0, message).back() == "ClaimTerm(5)";
  };
  const auto begin = [&] {
    protect(1);
    close(1);
    close(2);
    executed(0, 1);
  };
  begin();
  EXPECT_TRUE(loses(Executed{{1}}));
  begin();
  EXPECT_TRUE(loses(Executed{{3}}));
  begin();
  EXPECT_TRUE(loses(Divergence{{1}, 0, true}));
  begin();
  EXPECT_TRUE(loses(Divergence{{3}, 0, true}));
  begin();
  diverged(0, 2);
  EXPECT_TRUE(loses(Executed{{2}}));
  begin();
  diverged(0, 2);
  EXPECT_TRUE(loses(Divergence{{2}, 0, true}));
  begin();
  diverged(0, 2);
  EXPECT_TRUE(loses(Ack{{2}}));  // before it was healed
  begin();
  diverged(0, 2);
  close(3);
  heal(0, 4);
  close(4);
  EXPECT_TRUE(loses(Ack{{3}}));  // not the record that heals
}

}  // namespace
}  // namespace pollux::protocol
