#include "chaos/replica_end.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace pollux::chaos {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

constexpr const char* kFenced =
    "12:00:00.000 info arbiter file:/a: term 6 is another replica's\n"
    "12:00:00.001 critical fenced: term 6 is another replica's\n"
    "12:00:00.001 critical fenced: term 6 is another replica's: this host stops\n"
    "pollux: fenced: term 6 is another replica's\n";
constexpr const char* kDiskFailed =
    "12:00:00.000 error disk image /run/castor.disk: write failed: Input/output error\n"
    "12:00:00.000 critical cannot write committed data to /run/castor.disk: this host stops\n"
    "pollux: this host failed: cannot write committed data to /run/castor.disk\n";

TEST(ReplicaEnd, IsOrderlyWhenItLostItsMachine) {
  EXPECT_THAT(check_end({1, false, kFenced}, {}), IsEmpty());
  EXPECT_THAT(
      check_end({1, false, "12:00:00.000 error the primary said goodbye: dropped: silent for 806 ms\n"}, {}),
      IsEmpty());
  EXPECT_THAT(check_end({1, false,
                         "12:00:00.000 error lost the primary before protection began: silent for 806 ms; "
                         "the disks here\n"},
                        {}),
              IsEmpty());
}

TEST(ReplicaEnd, OfOneThatWasKilledIsOrderlyOnlyWhenTheCampaignDidIt) {
  EXPECT_THAT(check_end({128 + 9, true, ""}, {}), IsEmpty());
  EXPECT_THAT(check_end({128 + 9, false, ""}, {}), ElementsAre("it ended with code 137"));
  EXPECT_THAT(check_end({128 + 11, true, ""}, {}),
              ElementsAre("it ended with code 139"));  // before it was killed
}

TEST(ReplicaEnd, OfItsOwnMustHaveACause) {
  EXPECT_THAT(check_end({1, false, "12:00:00.000 info full sync begins\n"}, {}),
              ElementsAre("it ended with code 1 and did not say why"));
  EXPECT_THAT(check_end({1, false, "pollux: KVM_RUN: Invalid argument\n"}, {}),
              ElementsAre(HasSubstr("KVM_RUN")));
  EXPECT_THAT(check_end({1, false, "12:00:00.000 error refused the primary: another machine\n"}, {}),
              ElementsAre(HasSubstr("refused")));
  EXPECT_THAT(check_end({4, false, "12:00:00.000 error the guest crashed: x\n"}, {}),
              ElementsAre(HasSubstr("the guest crashed"), "it ended with code 4"));
}

TEST(ReplicaEnd, ByItsDiskIsExplainedByAFaultOfItsDiskOnly) {
  EXPECT_THAT(check_end({1, false, kDiskFailed}, {.disk_harmed = true}), IsEmpty());
  EXPECT_THAT(check_end({1, false, kDiskFailed}, {.may_diverge = true, .told_to_hand_over = true}),
              ElementsAre(HasSubstr("disk image"), HasSubstr("critical cannot write"),
                          HasSubstr("this host failed")));
}

TEST(ReplicaEnd, WithoutMemoryIsExplainedByThat) {
  const std::string log = "pollux: out of memory: this host stops\n";
  EXPECT_THAT(check_end({1, false, log}, {.memory_harmed = true}), IsEmpty());
  EXPECT_THAT(check_end({1, false, log}, {.disk_harmed = true}), ElementsAre(HasSubstr("out of memory")));
}

TEST(ReplicaEnd, WithoutNeedIsOrderlyWhenItWasTold) {
  EXPECT_THAT(check_end({0, false, ""}, {.told_to_end = true}), IsEmpty());
  EXPECT_THAT(check_end({128 + 15, false, ""}, {.told_to_end = true}), IsEmpty());
  EXPECT_THAT(check_end({0, false, ""}, {}), ElementsAre("it ended with code 0"));
  EXPECT_THAT(check_end({5, false, ""}, {.told_to_hand_over = true}), IsEmpty());
  EXPECT_THAT(check_end({5, false, ""}, {}), ElementsAre("it ended with code 5"));
}

// Also of one that went on, or was killed later.
TEST(ReplicaEnd, ABrokenRuleIsNeverExplained) {
  EXPECT_THAT(check_end({128 + 6, true, "invariant failed: bytes <= limit at ../../primary/x.cc:83\n"}, {.memory_harmed = true}),
              ElementsAre(HasSubstr("invariant failed"), "it ended with code 134"));
  const Treatment everything{true, true, true, true, true};
  EXPECT_THAT(check_end({128 + 9, true,
                         "12:00:00.000 warning backup 0: dropped: protocol violation: Ack(7) after Ack(7)\n"},
                        everything),
              ElementsAre(HasSubstr("Ack(7)")));
  EXPECT_THAT(check_end({1, false, "12:00:00.000 error the primary broke the protocol: Hello out of place\n"},
                        everything),
              ElementsAre(HasSubstr("Hello out of place")));
}

TEST(ReplicaEnd, StatesDivergeOnlyWhereSomethingWasHarmed) {
  const ReplicaEnd healed{128 + 9, true, "12:00:00.000 warning backup 1: diverged in epoch 70: 3 page(s)\n"};
  EXPECT_THAT(check_end(healed, {.may_diverge = true}), IsEmpty());
  EXPECT_THAT(check_end(healed, {}), ElementsAre(HasSubstr("diverged in epoch 70")));
}

}  // namespace
}  // namespace pollux::chaos
