// What counts as the time that a guest had in an epoch; the guest is this thread.
#include "vmm/deterministic/epoch_watch.h"

#include <gtest/gtest.h>

#include <ctime>

namespace pollux::testing {
namespace {

using namespace std::chrono_literals;

constexpr auto kLimit = 100ms;

std::chrono::nanoseconds own_processor_time() {
  timespec used{};
  ::clock_gettime(CLOCK_THREAD_CPUTIME_ID, &used);
  return std::chrono::seconds(used.tv_sec) + std::chrono::nanoseconds(used.tv_nsec);
}

void compute_for(std::chrono::nanoseconds time) {
  for (const auto end = own_processor_time() + time; own_processor_time() < end;) {
  }
}

class EpochWatchTest : public ::testing::Test {
 protected:
  std::atomic<int> kicks_ = 0;
  vmm::EpochWatch watch_{kLimit, [this] { ++kicks_; }};
};

TEST_F(EpochWatchTest, AGuestThatComputesForTheLimitIsOver) {
  watch_.begin_epoch();
  watch_.enter();
  const auto begun = own_processor_time();
  while (!watch_.is_over()) {
  }
  EXPECT_GE(own_processor_time() - begun, kLimit);
  // It was asked to come out of the guest, or nobody could have looked.
  EXPECT_GT(kicks_, 0);
}

TEST_F(EpochWatchTest, TimeInWhichItDidNotRunIsNotIts) {
  watch_.begin_epoch();
  watch_.enter();
  for (int i = 0; i < 30; ++i) {
    std::this_thread::sleep_for(kLimit / 10);  // what is tested: the clock goes on without the guest
    ASSERT_FALSE(watch_.is_over());
  }
}

// It is stopped again and again, within each turn of the watch.
TEST_F(EpochWatchTest, ManyShortPartsAreOneEpoch) {
  watch_.begin_epoch();
  bool over = false;
  const auto begun = own_processor_time();
  while (!over) {
    watch_.enter();
    compute_for(100us);
    over = watch_.is_over();
    watch_.leave();
  }
  EXPECT_GE(own_processor_time() - begun, kLimit);
}

TEST_F(EpochWatchTest, EveryEpochHasTheWholeLimit) {
  for (int epoch = 0; epoch < 10; ++epoch) {
    watch_.begin_epoch();
    watch_.enter();
    compute_for(kLimit / 4);
    ASSERT_FALSE(watch_.is_over());
  }
}

}  // namespace
}  // namespace pollux::testing
