#include "primary/engine_mailbox.h"

#include <gtest/gtest.h>

#include <future>

namespace pollux::primary {
namespace {

using namespace std::chrono_literals;
using protocol::BackupId;
using protocol::EpochId;

// Far longer than anything takes; reached only by a test that fails.
constexpr auto kPatience = 60s;
constexpr BackupId kFirst{0};
constexpr BackupId kSecond{1};

DigestAnswer answer(BackupId backup, std::uint64_t first) { return {backup, {{0}, first, 1}, Bytes(16)}; }

class EngineMailboxTest : public ::testing::Test {
 protected:
  // Waits that have to wait: nothing is there yet.
  std::future<std::optional<DigestAnswer>> wait_for_digests() {
    auto waiting = std::async(std::launch::async, [this] { return mailbox_.wait_for_digests(kFirst); });
    EXPECT_EQ(waiting.wait_for(20ms), std::future_status::timeout);
    return waiting;
  }
  std::future<bool> wait_for_commit(EpochId epoch) {
    auto waiting =
        std::async(std::launch::async, [=, this] { return mailbox_.wait_for_commit(epoch, kPatience); });
    EXPECT_EQ(waiting.wait_for(20ms), std::future_status::timeout);
    return waiting;
  }

  EngineMailbox mailbox_;
};

TEST_F(EngineMailboxTest, HandsEachBackupsAnswerToWhoWaitsForIt) {
  auto waiting = wait_for_digests();
  mailbox_.digests(answer(kSecond, 5));
  EXPECT_EQ(waiting.wait_for(20ms), std::future_status::timeout) << "the other backup's answer";
  mailbox_.digests(answer(kFirst, 7));
  EXPECT_EQ(waiting.get()->header.first, 7u);
  EXPECT_EQ(mailbox_.wait_for_digests(kSecond)->header.first, 5u);
}

TEST_F(EngineMailboxTest, ADroppedBackupLetsTheWaiterForItsDigestsGo) {
  auto waiting = wait_for_digests();
  mailbox_.dropped(kSecond);
  EXPECT_EQ(waiting.wait_for(20ms), std::future_status::timeout) << "the other backup";
  mailbox_.dropped(kFirst);
  EXPECT_FALSE(waiting.get().has_value());
  EXPECT_TRUE(mailbox_.is_dropped(kFirst));
  mailbox_.digests(answer(kFirst, 0));
  EXPECT_FALSE(mailbox_.wait_for_digests(kFirst).has_value()) << "what it said last";
}

TEST_F(EngineMailboxTest, StoppingLetsTheWaiterForDigestsGo) {
  auto waiting = wait_for_digests();
  mailbox_.stop();
  EXPECT_FALSE(waiting.get().has_value());
  EXPECT_TRUE(mailbox_.stopping());
}

TEST_F(EngineMailboxTest, ACommitLetsItsWaiterGo) {
  auto waiting = wait_for_commit({3});
  mailbox_.committed({2});
  EXPECT_EQ(waiting.wait_for(20ms), std::future_status::timeout);
  mailbox_.committed({4});
  EXPECT_TRUE(waiting.get());
  EXPECT_EQ(mailbox_.committed(), EpochId{4});
}

TEST_F(EngineMailboxTest, LosingProtectionLetsTheWaiterForACommitGo) {
  auto waiting = wait_for_commit({3});
  mailbox_.unprotected();
  EXPECT_FALSE(waiting.get());
  EXPECT_TRUE(mailbox_.is_unprotected());
}

TEST_F(EngineMailboxTest, AWaitForACommitEndsWithItsTime) {
  EXPECT_FALSE(mailbox_.wait_for_commit({1}, 1ms));
}

TEST_F(EngineMailboxTest, ASyncIsAskedForOnceAndNotOfADroppedBackup) {
  mailbox_.start_full_sync({{kFirst, nullptr}, {kSecond, nullptr}});
  mailbox_.dropped(kFirst);
  const std::vector<SyncTarget> requests = mailbox_.take_sync_requests();
  ASSERT_EQ(requests.size(), 1u);
  EXPECT_EQ(requests.front().backup, kSecond);
  EXPECT_TRUE(mailbox_.take_sync_requests().empty());
}

// An operator's orders.

TEST_F(EngineMailboxTest, OneHandoverAtATimeAndItsOutcomeGoesToWhoWaits) {
  EXPECT_TRUE(mailbox_.request_handover(kFirst));
  EXPECT_FALSE(mailbox_.request_handover(kSecond));
  EXPECT_EQ(mailbox_.requested_handover(), kFirst);
  auto waiting = std::async(std::launch::async, [&] { return mailbox_.wait_for_handover(kPatience); });
  EXPECT_EQ(waiting.wait_for(20ms), std::future_status::timeout);
  mailbox_.handover_ended({HandoverOutcome::Kind::kTakenBack, "x"});
  EXPECT_EQ(waiting.get()->reason, "x");
  EXPECT_FALSE(mailbox_.requested_handover());
  // The next begins without the outcome of the last.
  EXPECT_TRUE(mailbox_.request_handover(kSecond));
  EXPECT_FALSE(mailbox_.wait_for_handover(1ms));
}

TEST_F(EngineMailboxTest, AnEndedMachineLetsEveryOrderGo) {
  EXPECT_TRUE(mailbox_.request_handover(kFirst));
  mailbox_.set_held(true);
  auto handover = std::async(std::launch::async, [&] { return mailbox_.wait_for_handover(kPatience); });
  auto standing = std::async(std::launch::async, [&] { return mailbox_.wait_until_standing(true, kPatience); });
  EXPECT_EQ(standing.wait_for(20ms), std::future_status::timeout);
  mailbox_.close();
  EXPECT_FALSE(handover.get());
  EXPECT_FALSE(standing.get());
  EXPECT_FALSE(mailbox_.request_handover(kSecond));
}

TEST_F(EngineMailboxTest, AHeldGuestIsWaitedFor) {
  mailbox_.set_held(true);
  auto waiting = std::async(std::launch::async, [&] { return mailbox_.wait_until_standing(true, kPatience); });
  EXPECT_EQ(waiting.wait_for(20ms), std::future_status::timeout);
  mailbox_.set_standing(true);
  EXPECT_TRUE(waiting.get());
  EXPECT_FALSE(mailbox_.wait_until_standing(false, 1ms));
}

// What a lockstep primary's guest waits for between two epochs.
std::future<bool> wait_for_progress(EngineMailbox& mailbox, EpochId committed, EpochId executed) {
  auto waiting = std::async(std::launch::async, [=, &mailbox] {
    return mailbox.wait_for_progress(committed, executed, kPatience);
  });
  EXPECT_EQ(waiting.wait_for(20ms), std::future_status::timeout);
  return waiting;
}

TEST_F(EngineMailboxTest, ProgressIsBothCommittedAndExecuted) {
  auto waiting = wait_for_progress(mailbox_, {5}, {3});
  mailbox_.committed({5});
  EXPECT_EQ(waiting.wait_for(20ms), std::future_status::timeout) << "not yet executed";
  mailbox_.executed({3});
  EXPECT_TRUE(waiting.get());
  EXPECT_EQ(mailbox_.executed(), EpochId{3});
}

TEST_F(EngineMailboxTest, WhatMakesTheWaitMootEndsIt) {
  const auto ends = [](auto tell) {
    EngineMailbox mailbox;
    auto waiting = wait_for_progress(mailbox, {5}, {5});
    const std::uint64_t seen = mailbox.urgent();
    tell(mailbox);
    EXPECT_FALSE(waiting.get());
    EXPECT_GT(mailbox.wait_for_urgent(seen, kPatience), seen) << "a guest in the midst of an epoch is interrupted";
  };
  ends([](EngineMailbox& mailbox) { mailbox.stop(); });
  ends([](EngineMailbox& mailbox) { mailbox.fail(); });
  ends([](EngineMailbox& mailbox) { mailbox.unprotected(); });
  ends([](EngineMailbox& mailbox) { mailbox.set_held(true); });
  ends([](EngineMailbox& mailbox) { EXPECT_TRUE(mailbox.request_handover(kFirst)); });
  ends([](EngineMailbox& mailbox) { mailbox.heal({kFirst, {4}, {}, true}); });
}

TEST_F(EngineMailboxTest, AWaitForWhatIsUrgentEndsWhenItIsToStop) {
  std::stop_source stop;
  auto waiting = std::async(std::launch::async, [&] {
    return mailbox_.wait_for_urgent(mailbox_.urgent(), kPatience, stop.get_token());
  });
  EXPECT_EQ(waiting.wait_for(20ms), std::future_status::timeout);
  stop.request_stop();
  EXPECT_EQ(waiting.wait_for(kPatience / 2), std::future_status::ready);
}

TEST_F(EngineMailboxTest, HealsAreTakenOnceAndNotForTheDropped) {
  mailbox_.heal({kFirst, {4}, {{7}}, false});
  mailbox_.heal({kSecond, {5}, {}, true});
  EXPECT_TRUE(mailbox_.has_heals());
  mailbox_.dropped(kFirst);
  const std::vector<HealRequest> heals = mailbox_.take_heals();
  ASSERT_EQ(heals.size(), 1u);
  EXPECT_EQ(heals[0].backup, kSecond);
  EXPECT_FALSE(mailbox_.has_heals());
}

TEST_F(EngineMailboxTest, TheHealOfALostBackupIsForgotten) {
  mailbox_.heal({kFirst, {4}, {{7}}, false});
  mailbox_.heal({kSecond, {5}, {}, true});
  mailbox_.forget_heal(kSecond);
  EXPECT_EQ(mailbox_.heals(), std::vector{kFirst});
  mailbox_.forget_heal(kFirst);
  EXPECT_FALSE(mailbox_.has_heals());
}

}  // namespace
}  // namespace pollux::primary
