#include "protocol/arbiter/bounded_arbiter.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <condition_variable>
#include <mutex>
#include <thread>

namespace pollux::protocol {
namespace {

using namespace std::chrono_literals;

// Hangs like a dead network file system, until it is let go.
class HangingDecider final : public Decider {
 public:
  [[nodiscard]] Decision decide(const TermClaim&, TimePoint) override {
    std::unique_lock lock(mutex_);
    go_.wait(lock, [&] { return !hanging_; });
    return Decision::won();
  }
  void let_go() {
    const std::lock_guard lock(mutex_);
    hanging_ = false;
    go_.notify_all();
  }

 private:
  std::mutex mutex_;
  std::condition_variable go_;
  bool hanging_ = true;
};

class ThrowingDecider final : public Decider {
 public:
  [[nodiscard]] Decision decide(const TermClaim&, TimePoint) override {
    throw Error("cannot read /dev/tape: on fire");
  }
};

TEST(BoundedArbiter, AnswersAlthoughItsStorageHangs) {
  const auto decider = std::make_shared<HangingDecider>();
  BoundedArbiter arbiter("file:/net", decider, 20ms);
  EXPECT_EQ(arbiter.claim({{}, {1}, {}}), Verdict::kUnreachable);
  EXPECT_EQ(arbiter.last_reason(), "file:/net: no answer within 20 ms");
  EXPECT_EQ(arbiter.abandoned(), 1U);
  decider->let_go();
  while (arbiter.abandoned() > 0) std::this_thread::yield();
  BoundedArbiter patient("file:/net", decider, 60s);
  EXPECT_EQ(patient.claim({{}, {1}, {}}), Verdict::kWon);
  EXPECT_EQ(patient.last_reason(), "");
}

TEST(BoundedArbiter, LeavesOnlySoManyThreadsBehind) {
  const auto decider = std::make_shared<HangingDecider>();
  BoundedArbiter arbiter("file:/net", decider, 5ms);
  for (unsigned i = 0; i < BoundedArbiter::kMaxAbandoned; ++i) {
    EXPECT_EQ(arbiter.claim({{}, {1}, {}}), Verdict::kUnreachable);
  }
  EXPECT_EQ(arbiter.claim({{}, {1}, {}}), Verdict::kUnreachable);
  EXPECT_EQ(arbiter.last_reason(), "file:/net: 4 earlier claims still hang");
  EXPECT_EQ(arbiter.abandoned(), BoundedArbiter::kMaxAbandoned);
  decider->let_go();
  while (arbiter.abandoned() > 0) std::this_thread::yield();
}

TEST(BoundedArbiter, MayGoBeforeItsThreads) {
  const auto decider = std::make_shared<HangingDecider>();
  std::weak_ptr<HangingDecider> left = decider;
  {
    BoundedArbiter arbiter("file:/net", decider, 5ms);
    EXPECT_EQ(arbiter.claim({{}, {1}, {}}), Verdict::kUnreachable);
  }
  EXPECT_EQ(decider.use_count(), 2);  // the thread's and this one
  decider->let_go();
  while (decider.use_count() > 1) std::this_thread::yield();
}

TEST(BoundedArbiter, AnErrorIsNoDecision) {
  BoundedArbiter arbiter("file:/dev", std::make_shared<ThrowingDecider>(), 60s);
  EXPECT_EQ(arbiter.claim({{}, {1}, {}}), Verdict::kUnreachable);
  EXPECT_EQ(arbiter.last_reason(), "cannot read /dev/tape: on fire");
}

}  // namespace
}  // namespace pollux::protocol
