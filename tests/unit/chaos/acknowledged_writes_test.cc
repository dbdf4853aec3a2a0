#include "chaos/acknowledged_writes.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/unit/chaos/random_history.h"

namespace pollux::chaos {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

History counted(std::uint64_t acknowledged, std::uint64_t open, std::optional<std::uint64_t> last_value) {
  History history;
  for (std::uint64_t i = 1; i <= acknowledged + open; ++i) {
    Operation increment;
    increment.kind = OperationKind::kIncrement;
    increment.key = "n";
    increment.invoked = Moment(10 * i);
    if (i <= acknowledged) {
      increment.returned = Moment(10 * i + 5);
      increment.answer.value = encode_number(i);
    }
    history.push_back(increment);
  }
  if (last_value) {
    Operation read;
    read.key = "n";
    read.invoked = Moment(1'000'000);
    read.returned = Moment(1'000'001);
    read.answer.value = encode_number(*last_value);
    history.push_back(read);
  }
  return history;
}

TEST(CounterCheck, AcceptsWhatWasAcknowledgedAndWhatMayHaveHappened) {
  EXPECT_THAT(check_counters(counted(5, 0, 5)), IsEmpty());
  EXPECT_THAT(check_counters(counted(5, 2, 5)), IsEmpty());
  EXPECT_THAT(check_counters(counted(5, 2, 7)), IsEmpty());
  EXPECT_THAT(check_counters(counted(5, 0, std::nullopt)), IsEmpty());
}

TEST(CounterCheck, RefusesALostAndAnInventedIncrement) {
  EXPECT_THAT(check_counters(counted(5, 0, 4)), ElementsAre("n: 5 increments were acknowledged, 0 are open, and its last value is 4"));
  EXPECT_THAT(check_counters(counted(5, 1, 7)), ElementsAre("n: 5 increments were acknowledged, 1 are open, and its last value is 7"));
}

TEST(CounterCheck, RefusesOneAnswerToTwoIncrements) {
  History history = counted(5, 0, 5);
  history[3].answer = history[2].answer;
  EXPECT_THAT(check_counters(history), ElementsAre("n: two increments answered 3"));
}

TEST(CounterCheck, DoesNotTakeAnEarlyReadForTheLast) {
  History history = counted(5, 0, 4);
  history.back().invoked = Moment(41);
  EXPECT_THAT(check_counters(history), IsEmpty());
}

TEST(CounterCheck, AcceptsRealExecutions) {
  for (std::uint64_t seed = 1; seed <= 50; ++seed) EXPECT_THAT(check_counters(testing::random_history(seed)), IsEmpty());
}

}  // namespace
}  // namespace pollux::chaos
