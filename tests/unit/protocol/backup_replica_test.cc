#include "protocol/backup_replica.h"

#include "script.h"

namespace pollux::protocol {
namespace {

using namespace backup;
using State = BackupReplica::State;

// Of a piece with one run, beside its body.
constexpr std::uint64_t kPieceBytes = kPieceOverhead + sizeof(PageRun);

class BackupScript : public ::testing::Test {
 protected:
  static Hello hello() {
    Hello hello;
    hello.term = {4};
    hello.machine_config = Bytes(8, std::byte{1});
    hello.config_digest = digest_config(hello.machine_config);
    hello.disk_bytes = {1 << 20};
    return hello;
  }

  void start() {
    BackupConfig config;
    config.max_record_bytes = 1 << 20;
    config.timing = {100ms, 1s, 200ms};
    backup_.emplace(config);
  }

  Lines step(const Event& event) { return lines(backup_->step(event, clock_.now())); }
  Lines receive(const Message& message) { return lines(backup_->receive(message, clock_.now())); }

  void begin_sync() {
    start();
    step(LinkUp{});
    receive(hello());
    step(HelloAccepted{});
  }
  // Synced, applied, durable and acknowledged.
  void protect() {
    begin_sync();
    receive(SyncEnd{});
    applied(0);
    durable(0);
  }
  Lines open(std::uint64_t epoch) { return receive(EpochOpen{{epoch}}); }
  Lines pages(std::uint64_t epoch, std::uint64_t count) {
    return receive(EpochPages{{epoch}, {{{16}, count, false}}});
  }
  Lines close(std::uint64_t epoch, std::uint64_t pages, bool flushed = false) {
    return receive(EpochClose{{epoch}, pages, 0, 0, flushed, 64});
  }
  // An epoch of one page.
  Lines record(std::uint64_t epoch, bool flushed = false) {
    open(epoch);
    pages(epoch, 1);
    return close(epoch, 1, flushed);
  }
  Lines applied(std::uint64_t epoch) { return step(EpochApplied{{epoch}}); }
  Lines durable(std::uint64_t epoch) { return step(EpochDurable{{epoch}}); }

  Lines won(std::uint64_t term) { return step(TermWon{{term}}); }
  Lines lost(std::uint64_t term) { return step(TermLost{{term}}); }

  static Lines violation(const std::string& what) {
    return {"Send(Goodbye(dropped: protocol violation: " + what + "))",
            "End(failed, the primary broke the protocol: " + what + ")"};
  }
  static Lines violation_in(std::uint64_t epoch, const std::string& what) {
    Lines lines = violation(what);
    lines.insert(lines.begin(), "DiscardPartial(" + std::to_string(epoch) + ")");
    return lines;
  }

  Clock clock_;
  std::optional<BackupReplica> backup_;
};

TEST_F(BackupScript, FromTheFirstLinkToTheFirstEpoch) {
  start();
  EXPECT_EQ(step(LinkUp{}), Lines{});
  EXPECT_EQ(receive(hello()), (Lines{"ExamineHello"}));
  EXPECT_EQ(step(HelloAccepted{}), (Lines{"Send(Welcome(version 4, term 4))", "BeginSync"}));
  EXPECT_EQ(receive(DiskDigestRequest{{0}, 0, 16}), Lines{});
  EXPECT_EQ(receive(DiskBlocks{{0}, {{0, 65536, false}}}), Lines{});
  EXPECT_EQ(receive(SyncPages{{{{16}, 2, false}, {{100}, 50, true}}}), Lines{});
  EXPECT_EQ(receive(SyncEnd{{0}, 2, 50, 1, 64}), (Lines{"ApplyEpoch(0)", "MakeDurable(0)"}));
  EXPECT_EQ(applied(0), Lines{});
  EXPECT_EQ(durable(0), (Lines{"Send(Ack(0))"}));
  EXPECT_EQ(open(1), Lines{});
  EXPECT_EQ(pages(1, 3), Lines{});
  EXPECT_EQ(receive(EpochDiskWrites{{1}, {{{0}, DiskOperationKind::kWrite, 0, 512}}}), Lines{});
  EXPECT_EQ(receive(EpochClose{{1}, 3, 0, 1, false, 64}), (Lines{"ApplyEpoch(1)", "Send(Ack(1))"}));
  EXPECT_EQ(backup_->last_whole(), EpochId{1});
}

TEST_F(BackupScript, AMarkOfTheSyncIsSentBackWhenDurable) {
  begin_sync();
  receive(SyncPages{{{{16}, 2, false}}});
  EXPECT_EQ(receive(SyncMark{1}), (Lines{"MakeSyncDurable(1)"}));
  EXPECT_EQ(receive(SyncPages{{{{18}, 1, false}}}), Lines{});  // the next round may be on its way
  EXPECT_EQ(step(SyncDurable{{1}}), (Lines{"Send(SyncMark(1))"}));
  EXPECT_EQ(receive(SyncMark{2}), (Lines{"MakeSyncDurable(2)"}));
  EXPECT_EQ(receive(SyncMark{3}), violation("SyncMark(3) before the answer to the last"));
  EXPECT_EQ(step(SyncDurable{{2}}), Lines{});
  begin_sync();
  receive(SyncMark{1});
  EXPECT_EQ(receive(SyncEnd{}), violation("SyncEnd before the answer to the last SyncMark"));
  protect();
  EXPECT_EQ(receive(SyncMark{1}), violation("SyncMark out of place"));
}

TEST_F(BackupScript, ASyncMayEndAtALaterEpoch) {
  begin_sync();
  receive(SyncEnd{{41}, 0, 0, 0, 0});
  applied(41);
  EXPECT_EQ(durable(41), (Lines{"Send(Ack(41))"}));
  EXPECT_EQ(record(42), (Lines{"ApplyEpoch(42)", "Send(Ack(42))"}));
}

TEST_F(BackupScript, AFlushedEpochIsAcknowledgedWhenDurable) {
  protect();
  EXPECT_EQ(record(1, true), (Lines{"ApplyEpoch(1)", "MakeDurable(1)"}));
  applied(1);
  EXPECT_EQ(durable(1), (Lines{"Send(Ack(1))"}));
}

TEST_F(BackupScript, AcksStopShortOfAnEpochNotYetDurable) {
  protect();
  record(1, true);
  EXPECT_EQ(record(2), (Lines{"ApplyEpoch(2)"}));
  EXPECT_EQ(record(3, true), (Lines{"ApplyEpoch(3)", "MakeDurable(3)"}));
  applied(1);
  EXPECT_EQ(durable(1), (Lines{"Send(Ack(2))"}));
  applied(2);
  applied(3);
  EXPECT_EQ(durable(3), (Lines{"Send(Ack(3))"}));
}

TEST_F(BackupScript, NothingIsAcknowledgedBeforeTheSyncIsDurable) {
  begin_sync();
  receive(SyncEnd{});
  EXPECT_EQ(record(1), (Lines{"ApplyEpoch(1)"}));
  applied(0);
  EXPECT_EQ(durable(0), (Lines{"Send(Ack(1))"}));
}

TEST_F(BackupScript, ThePrimaryLostBetweenEpochsPromotesToTheLastWhole) {
  protect();
  record(1);
  EXPECT_EQ(step(LinkDown{"reset by peer"}), (Lines{"ClaimTerm(5)"}));
  EXPECT_EQ(backup_->state(), State::kClaiming);
  EXPECT_EQ(won(5), (Lines{"Promote(1, term 5, reset by peer)"}));
  EXPECT_EQ(backup_->state(), State::kPromoted);
}

TEST_F(BackupScript, APartialRecordIsDiscardedAtPromotion) {
  protect();
  record(1);
  open(2);
  pages(2, 5);
  EXPECT_EQ(step(LinkDown{"x"}), (Lines{"DiscardPartial(2)", "ClaimTerm(5)"}));
  EXPECT_EQ(won(5), (Lines{"Promote(1, term 5, x)"}));
}

TEST_F(BackupScript, AWholeEpochThatIsNotYetDurableIsPromotedTo) {
  protect();
  record(1, true);
  EXPECT_EQ(step(LinkDown{"x"}), (Lines{"ClaimTerm(5)"}));
  EXPECT_EQ(won(5), (Lines{"Promote(1, term 5, x)"}));
  // The engine's answers still come, and are no longer told to anybody.
  EXPECT_EQ(applied(1), Lines{});
  EXPECT_EQ(durable(1), Lines{});
}

TEST_F(BackupScript, ThePrimaryLostRightAfterTheSyncPromotesToItsEpoch) {
  begin_sync();
  receive(SyncEnd{});
  EXPECT_EQ(step(LinkDown{"x"}), (Lines{"ClaimTerm(5)"}));
  EXPECT_EQ(won(5), (Lines{"Promote(0, term 5, x)"}));
}

TEST_F(BackupScript, ASilentPrimaryIsLost) {
  protect();
  record(1);
  clock_.advance(999ms);
  EXPECT_EQ(step(Tick{}), (Lines{"Send(Heartbeat(1))"}));
  receive(Heartbeat{1});
  clock_.advance(1000ms);
  EXPECT_EQ(step(Tick{}), (Lines{"ClaimTerm(5)"}));
  EXPECT_EQ(backup_->next_deadline(), std::nullopt);
  EXPECT_EQ(won(5), (Lines{"Promote(1, term 5, silent for 1000 ms)"}));
}

TEST_F(BackupScript, BytesOfAnUnfinishedMessageCountAsLife) {
  protect();
  clock_.advance(900ms);
  step(Heard{clock_.now()});
  clock_.advance(900ms);
  EXPECT_EQ(step(Tick{}), (Lines{"Send(Heartbeat(1))"}));
}

// A state that does not fit one message.
TEST_F(BackupScript, AStateComesInPiecesWhereItBelongs) {
  begin_sync();
  EXPECT_EQ(receive(MachineState{{7}, 64}), Lines{});
  EXPECT_EQ(receive(SyncEnd{{8}}), violation("SyncEnd with the state of another epoch"));
  protect();
  EXPECT_EQ(receive(MachineState{{1}, 64}), violation("MachineState(1) outside its record"));
}

TEST_F(BackupScript, AStateInPiecesHasItsBound) {
  begin_sync();
  for (std::uint64_t bytes = 0; bytes < kMaxStateBytes; bytes += kMaxBodyBytes) {
    EXPECT_EQ(receive(MachineState{{1}, kMaxBodyBytes}), Lines{});
  }
  EXPECT_EQ(receive(MachineState{{1}, 1}), violation("the state of the machine is too long"));
}

TEST_F(BackupScript, ALossDuringTheSyncEnds) {
  begin_sync();
  receive(SyncPages{{{{16}, 2, false}}});
  EXPECT_EQ(step(LinkDown{"x"}), (Lines{"End(failed, lost the primary before protection began: x)"}));
  begin_sync();
  clock_.advance(1s);
  EXPECT_EQ(step(Tick{}),
            (Lines{"End(failed, lost the primary before protection began: silent for 1000 ms)"}));
}

TEST_F(BackupScript, ALossBeforeTheSyncLeavesRoomForAnotherPrimary) {
  start();
  step(LinkUp{});
  EXPECT_EQ(step(LinkDown{"x"}), (Lines{"Disconnect(x)"}));
  EXPECT_EQ(backup_->state(), State::kIdle);
  step(LinkUp{});
  receive(hello());
  clock_.advance(1s);
  EXPECT_EQ(step(Tick{}), (Lines{"Disconnect(silent for 1000 ms)"}));
  step(LinkUp{});
  EXPECT_EQ(receive(hello()), (Lines{"ExamineHello"}));
}

TEST_F(BackupScript, TheTermOfAnotherFencesIt) {
  protect();
  record(1);
  step(LinkDown{"x"});
  EXPECT_EQ(lost(5), (Lines{"Fenced(lost the primary: x; term 5 is another replica's)"}));
  EXPECT_EQ(backup_->state(), State::kEnded);
  EXPECT_EQ(applied(1), Lines{});
}

// Its primary had won it for both of them, and was not heard any more.
TEST_F(BackupScript, ATermOfItsOwnPrimaryLeavesItTheNext) {
  protect();
  record(1);
  step(LinkDown{"x"});
  EXPECT_EQ(step(TermOfOwnPrimary{{5}}), (Lines{"ClaimTerm(6)"}));
  EXPECT_EQ(step(ArbiterUnreachable{}), Lines{});
  clock_.advance(200ms);
  EXPECT_EQ(step(Tick{}), (Lines{"ClaimTerm(6)"}));
  EXPECT_EQ(step(TermOfOwnPrimary{{6}}), (Lines{"ClaimTerm(7)"}));
  EXPECT_EQ(won(7), (Lines{"Promote(1, term 7, x)"}));
}

TEST_F(BackupScript, AfterATermOfItsOwnPrimaryItMayStillLose) {
  protect();
  step(LinkDown{"x"});
  step(TermOfOwnPrimary{{5}});
  EXPECT_EQ(lost(6), (Lines{"Fenced(lost the primary: x; term 6 is another replica's)"}));
  EXPECT_EQ(step(TermOfOwnPrimary{{7}}), Lines{}) << "it has ended";
}

TEST_F(BackupScript, ClaimingItHearsNobodyAndAcknowledgesNothing) {
  protect();
  record(1, true);
  clock_.advance(1s);
  EXPECT_EQ(step(Tick{}), (Lines{"ClaimTerm(5)"}));
  EXPECT_EQ(applied(1), Lines{});
  EXPECT_EQ(durable(1), Lines{});
  EXPECT_EQ(record(2), Lines{});
  EXPECT_EQ(receive(Goodbye{GoodbyeReason::kStopped, {}}), Lines{});
  EXPECT_EQ(step(LinkDown{"closed"}), Lines{});
  EXPECT_EQ(won(5), (Lines{"Promote(1, term 5, silent for 1000 ms)"}));
}

TEST_F(BackupScript, AnUnreachableArbiterIsAskedAgain) {
  protect();
  step(LinkDown{"x"});
  clock_.advance(5s);
  EXPECT_EQ(step(Tick{}), Lines{});
  EXPECT_EQ(step(ArbiterUnreachable{}), Lines{});
  EXPECT_EQ(backup_->next_deadline(), clock_.now() + 200ms);
  clock_.advance(200ms);
  EXPECT_EQ(step(Tick{}), (Lines{"ClaimTerm(5)"}));
  EXPECT_EQ(backup_->next_deadline(), std::nullopt);
  EXPECT_EQ(won(5), (Lines{"Promote(0, term 5, x)"}));
}

TEST_F(BackupScript, StopWhileClaimingEnds) {
  protect();
  step(LinkDown{"x"});
  EXPECT_EQ(step(Stop{}), (Lines{"End(stopped)"}));
  EXPECT_EQ(won(5), Lines{});
  EXPECT_EQ(backup_->state(), State::kEnded);
}

TEST_F(BackupScript, ItClaimsTheTermAfterItsPrimarys) {
  protect();
  open(1);
  EXPECT_EQ(receive(NewTerm{{6}}), Lines{});
  EXPECT_EQ(backup_->term(), Term{6});
  EXPECT_EQ(step(LinkDown{"x"}), (Lines{"DiscardPartial(1)", "ClaimTerm(7)"}));
  EXPECT_EQ(won(7), (Lines{"Promote(0, term 7, x)"}));
}

TEST_F(BackupScript, TermsOnlyGrow) {
  protect();
  EXPECT_EQ(receive(NewTerm{{4}}), violation("NewTerm(4) after term 4"));
  protect();
  receive(NewTerm{{6}});
  EXPECT_EQ(receive(NewTerm{{5}}), violation("NewTerm(5) after term 6"));
  start();
  step(LinkUp{});
  EXPECT_EQ(receive(NewTerm{{5}}), violation("NewTerm before Hello"));
}

TEST_F(BackupScript, GoodbyeEndsAndNeverPromotes) {
  protect();
  record(1);
  open(2);
  EXPECT_EQ(receive(Goodbye{GoodbyeReason::kPoweredOff, {}}),
            (Lines{"DiscardPartial(2)", "End(the primary said goodbye: powered off)"}));
  EXPECT_EQ(step(LinkDown{"closed"}), Lines{});
}

TEST_F(BackupScript, ADroppedBackupEndsWithTheReason) {
  protect();
  EXPECT_EQ(receive(Goodbye{GoodbyeReason::kDropped, "silent for 1000 ms"}),
            (Lines{"End(failed, the primary said goodbye: dropped: silent for 1000 ms)"}));
}

TEST_F(BackupScript, ABackupTurnedAwayBeforeHelloMayComeAgain) {
  start();
  step(LinkUp{});
  EXPECT_EQ(receive(Goodbye{GoodbyeReason::kDropped, "it is protected"}),
            (Lines{"Disconnect(turned away: it is protected)"}));
  EXPECT_EQ(backup_->state(), State::kIdle);
  step(LinkUp{});
  EXPECT_EQ(receive(Goodbye{GoodbyeReason::kPoweredOff, {}}),
            (Lines{"End(the primary said goodbye: powered off)"}));
}

TEST_F(BackupScript, TwoBackupsDoNotWaitForEachOther) {
  start();
  step(LinkUp{});
  EXPECT_EQ(receive(Heartbeat{1}), (Lines{"Disconnect(the other side is no primary yet)"}));
  EXPECT_EQ(backup_->state(), State::kIdle);
}

TEST_F(BackupScript, AStoppedBackupSaysGoodbye) {
  protect();
  open(1);
  EXPECT_EQ(step(Stop{}), (Lines{"Send(Goodbye(stopped))", "DiscardPartial(1)", "End(stopped)"}));
  start();
  EXPECT_EQ(step(Stop{}), (Lines{"End(stopped)"}));
}

TEST_F(BackupScript, RefusalsNameTheirReason) {
  start();
  step(LinkUp{});
  receive(hello());
  EXPECT_EQ(
      step(HelloRefused{"disk 0 is too small"}),
      (Lines{"Send(Refuse(disk 0 is too small))", "End(failed, refused the primary: disk 0 is too small)"}));

  start();
  step(LinkUp{});
  Hello version = hello();
  version.version = 9;
  EXPECT_EQ(receive(version).at(0), "Send(Refuse(this backup speaks protocol version 4, the primary 9))");

  BackupConfig config;
  config.vm = VmId{};
  config.vm->value.fill(std::byte{0xab});
  backup_.emplace(config);
  step(LinkUp{});
  EXPECT_EQ(receive(hello()).at(0), "Send(Refuse(this backup is for VM abababababababababababababababab))");
}

TEST_F(BackupScript, MessagesBeforeTheirStateAreViolations) {
  start();
  step(LinkUp{});
  EXPECT_EQ(receive(SyncPages{{{{1}, 1, false}}}), violation("SyncPages out of place"));
  begin_sync();
  EXPECT_EQ(open(1), violation("EpochOpen before the full sync"));
  begin_sync();
  EXPECT_EQ(receive(hello()), violation("Hello out of place"));
  protect();
  EXPECT_EQ(receive(DiskBlocks{{0}, {{0, 512, false}}}), violation("DiskBlocks out of place"));
  protect();
  EXPECT_EQ(receive(SyncEnd{}), violation("SyncEnd out of place"));
  protect();
  EXPECT_EQ(receive(Ack{{1}}), violation("a primary sent Ack"));
}

TEST_F(BackupScript, EpochsAreConsecutive) {
  protect();
  EXPECT_EQ(open(2), violation("EpochOpen(2) after epoch 0"));
  protect();
  record(1);
  EXPECT_EQ(open(1), violation("EpochOpen(1) after epoch 1"));
}

TEST_F(BackupScript, APieceBelongsToTheOpenRecord) {
  protect();
  EXPECT_EQ(pages(1, 1), violation("EpochPages(1) outside its record"));
  protect();
  open(1);
  EXPECT_EQ(pages(2, 1), violation_in(1, "EpochPages(2) outside its record"));
  protect();
  open(1);
  EXPECT_EQ(open(2), violation_in(1, "EpochOpen(2) within epoch 1"));
  protect();
  EXPECT_EQ(close(1, 0), violation("EpochClose(1) outside its record"));
}

TEST_F(BackupScript, CountsMustAgree) {
  protect();
  open(1);
  pages(1, 3);
  EXPECT_EQ(close(1, 4), violation_in(1, "the record of epoch 1 lacks pages or disk writes"));
  protect();
  open(1);
  EXPECT_EQ(receive(EpochClose{{1}, 0, 0, 1, false, 64}),
            violation_in(1, "the record of epoch 1 lacks pages or disk writes"));
  begin_sync();
  EXPECT_EQ(receive(SyncEnd{{0}, 1, 0, 0, 64}), violation("the full sync lacks pages or disk blocks"));
}

TEST_F(BackupScript, DisksAreThoseOfTheHello) {
  protect();
  open(1);
  EXPECT_EQ(receive(EpochDiskWrites{{1}, {{{1}, DiskOperationKind::kWrite, 0, 512}}}),
            violation_in(1, "there is no disk 1"));
  protect();
  open(1);
  EXPECT_EQ(receive(EpochDiskWrites{{1}, {{{0}, DiskOperationKind::kDiscard, 1 << 20, 512}}}),
            violation_in(1, "disk operation beyond the disk"));
  begin_sync();
  EXPECT_EQ(receive(DiskBlocks{{0}, {{1 << 20, 512, true}}}), violation("blocks beyond the disk"));
  begin_sync();
  EXPECT_EQ(receive(DiskDigestRequest{{0}, 10, 7}), violation("digests beyond the disk"));
}

TEST_F(BackupScript, ARecordIsBounded) {
  protect();
  open(1);
  EXPECT_EQ(pages(1, 200), Lines{});
  EXPECT_EQ(backup_->staged_bytes(), 200 * kPageSize + kPieceBytes);
  EXPECT_EQ(pages(1, 57), violation_in(1, "the record of epoch 1 is longer than 1048576 bytes"));
}

// Pieces without a body take memory, too.
TEST_F(BackupScript, ARecordOfEmptyPiecesIsBounded) {
  protect();
  open(1);
  Lines lines;
  for (int pieces = 0; pieces < (1 << 20) / 128 + 1 && lines.empty(); ++pieces) lines = receive(EpochPages{{1}, {}});
  EXPECT_EQ(lines, violation_in(1, "the record of epoch 1 is longer than 1048576 bytes"));
}

TEST_F(BackupScript, StagedBytesAreFreeWhenApplied) {
  protect();
  record(1);
  EXPECT_EQ(backup_->staged_bytes(), kPageSize + kPieceBytes + 64);
  open(2);
  pages(2, 1);
  EXPECT_EQ(backup_->staged_bytes(), 2 * (kPageSize + kPieceBytes) + 64);
  applied(1);
  EXPECT_EQ(backup_->staged_bytes(), kPageSize + kPieceBytes);
}

TEST_F(BackupScript, TheConfigurationDigestIsChecked) {
  start();
  step(LinkUp{});
  Hello wrong = hello();
  wrong.machine_config.push_back(std::byte{0});
  EXPECT_EQ(receive(wrong), violation("the digest of the machine configuration is wrong"));
}

TEST_F(BackupScript, AnEndedBackupIsDeaf) {
  protect();
  step(Stop{});
  EXPECT_EQ(record(1), Lines{});
  EXPECT_EQ(step(Tick{}), Lines{});
  EXPECT_EQ(step(LinkUp{}), Lines{});
  EXPECT_EQ(step(Stop{}), Lines{});
}

TEST_F(BackupScript, EventsOutOfOrderAreABug) {
  protect();
  EXPECT_DEATH(applied(1), "invariant");
  EXPECT_DEATH(step(LinkUp{}), "invariant");
  record(1, true);
  EXPECT_DEATH(durable(1), "invariant");
  step(LinkDown{"x"});
  EXPECT_DEATH(won(6), "invariant");
}

}  // namespace
}  // namespace pollux::protocol
