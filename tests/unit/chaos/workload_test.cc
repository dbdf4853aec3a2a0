#include "chaos/workload.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/error.h"
#include "chaos/linearizability.h"
#include "tests/unit/chaos/kv_test_server.h"

namespace pollux::chaos {
namespace {

using std::chrono::milliseconds;
using testing::KvTestServer;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;
using ::testing::SizeIs;

const std::atomic<bool> kNeverStop = false;
constexpr milliseconds kPatience{60'000};
constexpr milliseconds kRetransmit{2};

TEST(KvClient, AsksUntilItIsAnswered) {
  KvTestServer server;
  Stopwatch watch;
  HistoryRecorder recorder;
  KvClient client({server.address(), 7, kRetransmit}, watch, recorder);
  for (std::uint64_t i = 1; i <= 50; ++i) {
    const auto answer = client.call(OperationKind::kIncrement, "n", "", kNeverStop);
    ASSERT_TRUE(answer);
    EXPECT_EQ(answer->value, encode_number(i));
  }
  EXPECT_EQ(client.call(OperationKind::kGet, "none", "", kNeverStop)->outcome, Outcome::kMissing);
  EXPECT_EQ(client.call(OperationKind::kPut, "text", "words", kNeverStop)->outcome, Outcome::kOk);
  EXPECT_EQ(client.call(OperationKind::kIncrement, "text", "", kNeverStop)->outcome, Outcome::kRefused);
  const History history = recorder.copy();
  ASSERT_THAT(history, SizeIs(53));
  EXPECT_EQ(history[52].sequence, 53U);
  EXPECT_EQ(recorder.answered_count(), 53U);
  EXPECT_THAT(check_linearizable(history), IsEmpty());
}

TEST(KvClient, WhatIsNeverAnsweredStaysOpen) {
  KvTestServer server;
  server.silent = true;
  Stopwatch watch;
  HistoryRecorder recorder;
  std::atomic<bool> stop = false;
  std::thread caller([&] {
    KvClient client({server.address(), 1, kRetransmit}, watch, recorder);
    EXPECT_FALSE(client.call(OperationKind::kGet, "x", "", stop));
  });
  stop = true;
  caller.join();
  const History history = recorder.copy();
  ASSERT_THAT(history, SizeIs(1));
  EXPECT_FALSE(history[0].returned);
}

TEST(KvClient, AnAnswerThatNoCorrectServerGivesIsAnError) {
  KvTestServer server(KvTestServer::Lie::kStatusFull);
  Stopwatch watch;
  HistoryRecorder recorder;
  KvClient client({server.address(), 1, kRetransmit}, watch, recorder);
  EXPECT_THROW((void)client.call(OperationKind::kGet, "x", "", kNeverStop), Error);
}

History run_workload(KvTestServer& server, std::size_t answers) {
  Stopwatch watch;
  HistoryRecorder recorder;
  Workload workload({.server = server.address(), .interval = milliseconds(0), .retransmit = kRetransmit}, watch, recorder);
  while (recorder.answered_count() < answers && workload.errors().empty()) std::this_thread::yield();
  EXPECT_TRUE(workload.finish(kPatience));
  EXPECT_THAT(workload.errors(), IsEmpty());
  return recorder.copy();
}

TEST(Workload, ACorrectServersHistoryIsLinearizable) {
  KvTestServer server;
  const History history = run_workload(server, 1000);
  EXPECT_GE(history.size(), 1004U);
  for (const Operation& operation : history) EXPECT_TRUE(operation.returned);
  EXPECT_THAT(check_linearizable(history), IsEmpty());
  const Operation& last = history.back();
  EXPECT_EQ(last.client, 5U);
  EXPECT_EQ(last.key, "counter-1");
}

TEST(Workload, AServerThatForgetsIsCaught) {
  KvTestServer server(KvTestServer::Lie::kForgetKeys);
  EXPECT_THAT(check_linearizable(run_workload(server, 1000)), Not(IsEmpty()));
}

TEST(Workload, AServerThatCarriesOutARepeatedRequestAgainIsCaught) {
  KvTestServer server(KvTestServer::Lie::kCarryOutRepeats);
  EXPECT_THAT(check_linearizable(run_workload(server, 1000)), Not(IsEmpty()));
}

TEST(Workload, AServerThatReadsOldValuesIsCaught) {
  KvTestServer server(KvTestServer::Lie::kStaleReads);
  EXPECT_THAT(check_linearizable(run_workload(server, 1000)), Not(IsEmpty()));
}

TEST(Workload, SaysWhenTheServerIsGoneAtTheEnd) {
  KvTestServer server;
  Stopwatch watch;
  HistoryRecorder recorder;
  Workload workload({.server = server.address(), .interval = milliseconds(0), .retransmit = kRetransmit}, watch, recorder);
  while (recorder.answered_count() < 100) std::this_thread::yield();
  server.silent = true;
  EXPECT_FALSE(workload.finish(milliseconds(50)));
  EXPECT_THAT(check_linearizable(recorder.copy()), IsEmpty());
}

TEST(Workload, NotesWhatNoCorrectServerAnswers) {
  KvTestServer server(KvTestServer::Lie::kStatusFull);
  Stopwatch watch;
  HistoryRecorder recorder;
  Workload workload({.server = server.address(), .interval = milliseconds(0), .retransmit = kRetransmit}, watch, recorder);
  while (workload.errors().empty()) std::this_thread::yield();
  workload.stop();
  EXPECT_THAT(workload.errors()[0], HasSubstr("status 3"));
}

}  // namespace
}  // namespace pollux::chaos
