#include "chaos/fault_schedule.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <set>
#include <tuple>

#include "base/error.h"

namespace pollux::chaos {
namespace {

using std::chrono::milliseconds;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

ScheduleOptions options(std::uint64_t seed, const std::string& kinds = "all") {
  ScheduleOptions options;
  options.seed = seed;
  options.duration = milliseconds(600'000);
  options.kinds = parse_fault_kinds(kinds);
  return options;
}

TEST(FaultSchedule, IsTheSameForTheSameSeed) {
  EXPECT_EQ(make_schedule(options(42)), make_schedule(options(42)));
  EXPECT_NE(make_schedule(options(42)), make_schedule(options(43)));
}

// A seed in a report must mean the same run on another machine: this list may change only with the schedule's code.
TEST(FaultSchedule, HasNoOtherSourceThanTheSeed) {
  const auto schedule = make_schedule(options(1, "kill,pause"));
  ASSERT_GE(schedule.size(), 3U);
  std::vector<std::string> lines;
  for (std::size_t i = 0; i < 3; ++i) lines.push_back(to_text(schedule[i]));
  EXPECT_THAT(lines, ElementsAre("1.401 s  kill backup", "4.216 s  kill backup",
                                 "5.851 s  pause primary, for 2.450 s"));
}

TEST(FaultSchedule, KeepsItsGapsAndItsDuration) {
  for (std::uint64_t seed = 1; seed <= 20; ++seed) {
    const ScheduleOptions chosen = options(seed);
    milliseconds free{0};
    for (const Fault& fault : make_schedule(chosen)) {
      EXPECT_GE(fault.at, free + chosen.shortest_gap);
      EXPECT_LE(fault.at, free + chosen.longest_gap);
      free = fault.at + fault.lasts;
      EXPECT_LT(free, chosen.duration);
    }
  }
}

TEST(FaultSchedule, HasEveryKindThatWasAskedForAndNoOther) {
  std::set<FaultKind> seen;
  for (const Fault& fault : make_schedule(options(3))) seen.insert(fault.kind);
  EXPECT_EQ(seen.size(), parse_fault_kinds("all").size());
  for (const Fault& fault : make_schedule(options(3, "kill"))) EXPECT_EQ(fault.kind, FaultKind::kKill);
}

TEST(FaultSchedule, APartOfItHasTheSameFaults) {
  const auto whole = make_schedule(options(42, "kill,pause,partition"));
  ScheduleOptions some = options(42, "kill,pause,partition");
  std::tie(some.first, some.last) = parse_fault_range("57..60");
  const auto part = make_schedule(some);
  ASSERT_EQ(part.size(), 4U);
  EXPECT_EQ(part.front().at, some.shortest_gap);
  for (std::size_t i = 0; i < part.size(); ++i) {
    Fault moved = whole[56 + i];
    EXPECT_EQ(moved.number, 57 + i);
    moved.at -= whole[56].at - some.shortest_gap;
    EXPECT_EQ(part[i], moved);
  }
  some.first = some.last = whole.size() + 1;
  EXPECT_TRUE(make_schedule(some).empty());
}

TEST(FaultSchedule, APartOfItIsWrittenAsARange) {
  EXPECT_EQ(parse_fault_range("59"), (std::pair<std::size_t, std::size_t>(59, 59)));
  for (const char* wrong : {"", "0", "5..4", "1..", "..3", "1..2..3", "x", "1..9999999"}) {
    EXPECT_THROW((void)parse_fault_range(wrong), UsageError) << wrong;
  }
}

TEST(FaultSchedule, HasNoFaultsInNoTime) {
  ScheduleOptions none = options(1);
  none.duration = milliseconds(0);
  EXPECT_TRUE(make_schedule(none).empty());
}

TEST(FaultKinds, AreReadInAnyOrderOnce) {
  EXPECT_EQ(to_text(parse_fault_kinds("pause,kill,pause")), "kill,pause");
  EXPECT_EQ(parse_fault_kinds(to_text(parse_fault_kinds("all"))), parse_fault_kinds("all"));
}

TEST(FaultKinds, AWrongOneIsNamed) {
  try {
    (void)parse_fault_kinds("kill,earthquake");
    FAIL();
  } catch (const UsageError& error) {
    EXPECT_THAT(error.what(), HasSubstr("'earthquake' is no fault; there are kill, pause, partition"));
  }
  EXPECT_THROW((void)parse_fault_kinds(""), UsageError);
}

}  // namespace
}  // namespace pollux::chaos
