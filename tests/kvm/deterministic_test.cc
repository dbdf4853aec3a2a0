// The deterministic machine on the real /dev/kvm: the same epochs from the same inputs.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/support/deterministic_guest.h"
#include "tests/support/test_machine.h"

namespace pollux::testing {
namespace {

using namespace std::chrono_literals;
using ::testing::HasSubstr;
using vmm::EpochEnd;

class Deterministic : public ::testing::Test {
 protected:
  void SetUp() override {
    if (const std::string why = why_no_kvm(); !why.empty()) GTEST_SKIP() << why;
  }
};

TEST_F(Deterministic, RepeatsAComputation) {
  DeterministicGuest first({.kernel = "compute"});
  const RecordedRun run = first.record({1'000});
  ASSERT_TRUE(run.ended()) << first.console();
  EXPECT_THAT(first.console(), HasSubstr("pointer_chase 0x"));
  EXPECT_GT(run.epochs.size(), 1'000u);
  DeterministicGuest second({.kernel = "compute"});
  EXPECT_EQ(second.replay(run), "");
  EXPECT_EQ(second.console(), first.console());
}

}  // namespace
}  // namespace pollux::testing
