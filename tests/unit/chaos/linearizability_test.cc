#include "chaos/linearizability.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/unit/chaos/random_history.h"

namespace pollux::chaos {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::SizeIs;

constexpr std::optional<int> kNever = std::nullopt;

// Histories of one key "x", written down operation by operation.
class Told {
 public:
  Told& put(int from, std::optional<int> to, const std::string& value) {
    return add(OperationKind::kPut, from, to, value, {});
  }
  Told& get(int from, std::optional<int> to, const std::string& value) {
    return add(OperationKind::kGet, from, to, {}, {Outcome::kOk, value});
  }
  Told& missing(int from, int to) { return add(OperationKind::kGet, from, to, {}, {Outcome::kMissing, {}}); }
  Told& increment(int from, std::optional<int> to, std::uint64_t answer) {
    return add(OperationKind::kIncrement, from, to, {}, {Outcome::kOk, encode_number(answer)});
  }
  Told& refused(int from, int to) { return add(OperationKind::kIncrement, from, to, {}, {Outcome::kRefused, {}}); }
  [[nodiscard]] auto check() const { return check_linearizable(history_); }

 private:
  Told& add(OperationKind kind, int from, std::optional<int> to, const std::string& argument, const Answer& answer) {
    Operation operation;
    operation.client = operation.sequence = history_.size() + 1;
    operation.kind = kind;
    operation.key = "x";
    operation.argument = argument;
    operation.invoked = Moment(from);
    if (to) {
      operation.returned = Moment(*to);
      operation.answer = answer;
    }
    history_.push_back(operation);
    return *this;
  }
  History history_;
};

TEST(Linearizability, AcceptsAnEmptyHistory) { EXPECT_THAT(check_linearizable({}), SizeIs(0)); }

TEST(Linearizability, AcceptsOneClientsSequence) {
  EXPECT_THAT(Told().missing(0, 1).put(2, 3, "a").get(4, 5, "a").put(6, 7, "b").get(8, 9, "b").check(), SizeIs(0));
}

TEST(Linearizability, AcceptsBothOrdersOfConcurrentWrites) {
  EXPECT_THAT(Told().put(0, 10, "a").put(0, 10, "b").get(11, 12, "a").check(), SizeIs(0));
  EXPECT_THAT(Told().put(0, 10, "a").put(0, 10, "b").get(11, 12, "b").check(), SizeIs(0));
}

TEST(Linearizability, RefusesTwoReadersThatSawConcurrentWritesInBothOrders) {
  EXPECT_THAT(Told().put(0, 10, "a").put(0, 10, "b").get(11, 12, "a").get(13, 14, "b").check(), SizeIs(1));
}

TEST(Linearizability, AcceptsAReadOfAWriteThatIsStillUnderWay) {
  EXPECT_THAT(Told().put(0, 100, "a").get(1, 2, "a").get(3, 4, "a").check(), SizeIs(0));
}

TEST(Linearizability, RefusesAReadBackInTime) {
  const auto found = Told().put(0, 100, "a").get(1, 2, "a").missing(3, 4).check();
  ASSERT_THAT(found, SizeIs(1));
  EXPECT_EQ(found[0].operation.sequence, 3U);
  EXPECT_THAT(found[0].possible_states, ElementsAre("\"a\""));
  EXPECT_THAT(found[0].concurrent, SizeIs(1));
}

TEST(Linearizability, RefusesAStaleRead) {
  const auto found = Told().put(0, 1, "old").put(2, 3, "new").get(4, 5, "old").check();
  ASSERT_THAT(found, SizeIs(1));
  EXPECT_EQ(found[0].key, "x");
  EXPECT_EQ(found[0].operation.sequence, 3U);
  EXPECT_THAT(found[0].possible_states, ElementsAre("\"new\""));
  ASSERT_TRUE(found[0].writer);
  EXPECT_EQ(found[0].writer->sequence, 1U);
  EXPECT_THAT(found[0].text(), HasSubstr("nothing explains the answer of client 3 #3 get x -> \"old\""));
}

TEST(Linearizability, RefusesALostWrite) {
  EXPECT_THAT(Told().put(0, 1, "a").missing(2, 3).check(), SizeIs(1));
  EXPECT_THAT(Told().increment(0, 1, 1).increment(2, 3, 1).check(), SizeIs(1));
}

TEST(Linearizability, RefusesAnIncrementCarriedOutTwice) {
  EXPECT_THAT(Told().increment(0, 1, 1).get(2, 3, encode_number(2)).check(), SizeIs(1));
}

TEST(Linearizability, AnUnansweredOperationMayTakeEffectLateOrNever) {
  EXPECT_THAT(Told().put(0, 1, "a").put(2, kNever, "b").get(3, 4, "a").get(5, 6, "a").check(), SizeIs(0));
  EXPECT_THAT(Told().put(0, 1, "a").put(2, kNever, "b").get(3, 4, "a").get(5, 6, "b").check(), SizeIs(0));
  EXPECT_THAT(Told().put(0, 1, "a").put(2, kNever, "b").get(3, 4, "b").get(5, 6, "a").check(), SizeIs(1));
  EXPECT_THAT(Told().increment(0, kNever, 0).increment(1, 2, 1).increment(3, 4, 3).check(), SizeIs(0));
  EXPECT_THAT(Told().increment(0, kNever, 0).increment(1, 2, 1).increment(3, 4, 4).check(), SizeIs(1));
}

TEST(Linearizability, AnUnansweredOperationDoesNothingBeforeItsInvocation) {
  EXPECT_THAT(Told().get(0, 1, "a").put(2, kNever, "a").check(), SizeIs(1));
}

TEST(Linearizability, KnowsWhatTheServerRefuses) {
  EXPECT_THAT(Told().put(0, 1, "text").refused(2, 3).get(4, 5, "text").check(), SizeIs(0));
  EXPECT_THAT(Told().increment(0, 1, 1).refused(2, 3).check(), SizeIs(1));
}

TEST(Linearizability, SaysSoWhenTooMuchIsOpenToDecide) {
  Told told;
  for (std::size_t i = 0; i <= kMaxOpenOperations; ++i) told.put(static_cast<int>(i), kNever, std::to_string(i));
  const auto found = told.check();
  ASSERT_THAT(found, SizeIs(1));
  EXPECT_FALSE(found[0].decided);
}

TEST(Linearizability, AcceptsRealExecutions) {
  for (std::uint64_t seed = 1; seed <= 200; ++seed) {
    const auto found = check_linearizable(testing::random_history(seed));
    EXPECT_THAT(found, SizeIs(0)) << "seed " << seed << "\n" << found[0].text();
  }
}

TEST(Linearizability, AcceptsTenThousandOperationsOfSeveralClients) {
  const History many = testing::random_history(1, {.operations = 10'000, .clients = 8, .keys = 2});
  EXPECT_THAT(check_linearizable(many), SizeIs(0));
}

// Reads a value that was overwritten, for certain, before the read began. False: there is no such read.
bool plant_stale_read(History& history, std::mt19937_64& random) {
  for (int attempt = 0; attempt < 1000; ++attempt) {
    Operation& read = history[random() % history.size()];
    if (read.kind != OperationKind::kGet || !read.returned) continue;
    for (const Operation& old : history) {
      if (old.kind != OperationKind::kPut || old.key != read.key || !old.returned) continue;
      for (const Operation& newer : history) {
        if (newer.kind != OperationKind::kPut || newer.key != read.key || !newer.returned) continue;
        if (*old.returned < newer.invoked && *newer.returned < read.invoked) {
          read.answer = {Outcome::kOk, old.argument};
          return true;
        }
      }
    }
  }
  return false;
}

// Two increments that answer the same number.
bool plant_lost_increment(History& history, std::mt19937_64& random) {
  for (int attempt = 0; attempt < 1000; ++attempt) {
    Operation& changed = history[random() % history.size()];
    const Operation& other = history[random() % history.size()];
    const bool both = changed.kind == OperationKind::kIncrement && other.kind == OperationKind::kIncrement;
    if (!both || &changed == &other || changed.key != other.key || !changed.returned || !other.returned) continue;
    changed.answer = other.answer;
    return true;
  }
  return false;
}

bool plant_lost_key(History& history, std::mt19937_64& random) {
  for (int attempt = 0; attempt < 1000; ++attempt) {
    Operation& read = history[random() % history.size()];
    if (read.kind != OperationKind::kGet || !read.returned) continue;
    const bool written = std::any_of(history.begin(), history.end(), [&](const Operation& write) {
      return write.writes() && write.key == read.key && write.returned && *write.returned < read.invoked;
    });
    if (!written) continue;
    read.answer = {Outcome::kMissing, {}};
    return true;
  }
  return false;
}

TEST(Linearizability, RefusesRealExecutionsWithOneContradictionPlanted) {
  for (std::uint64_t seed = 1; seed <= 100; ++seed) {
    for (const auto plant : {plant_stale_read, plant_lost_increment, plant_lost_key}) {
      History history = testing::random_history(seed);
      std::mt19937_64 random(seed);
      ASSERT_TRUE(plant(history, random)) << "seed " << seed;
      const auto found = check_linearizable(history);
      ASSERT_THAT(found, SizeIs(1)) << "seed " << seed;
      EXPECT_TRUE(found[0].decided);
    }
  }
}

// The straightforward search over all orders, for small histories.
bool linearizable_by_trying_all(const History& left, const KeyState& state) {
  Moment first_return = Moment::max();
  bool answered = false;
  for (const Operation& operation : left) {
    if (!operation.returned) continue;
    answered = true;
    first_return = std::min(first_return, *operation.returned);
  }
  if (!answered) return true;
  for (std::size_t i = 0; i < left.size(); ++i) {
    if (left[i].invoked > first_return) continue;
    const Step step = carry_out(state, left[i]);
    if (left[i].returned && step.answer != left[i].answer) continue;
    History rest = left;
    rest.erase(rest.begin() + static_cast<std::ptrdiff_t>(i));
    if (linearizable_by_trying_all(rest, step.state)) return true;
  }
  return false;
}

TEST(Linearizability, AgreesWithTryingAllOrders) {
  std::mt19937_64 random(7);
  int refused = 0;
  for (int round = 0; round < 3000; ++round) {
    History history;
    for (std::uint64_t i = 0; i < 7; ++i) {
      Operation operation;
      operation.client = operation.sequence = i + 1;
      operation.key = "x";
      operation.kind = static_cast<OperationKind>(random() % 3);
      operation.argument = encode_number(random() % 3);
      operation.invoked = Moment(random() % 20);
      if (random() % 8 != 0) {
        operation.returned = operation.invoked + Moment(1 + random() % 12);
        if (operation.kind == OperationKind::kGet && random() % 4 == 0) operation.answer.outcome = Outcome::kMissing;
        else if (operation.kind != OperationKind::kPut) operation.answer.value = encode_number(random() % 4);
      }
      history.push_back(operation);
    }
    const bool expected = linearizable_by_trying_all(history, std::nullopt);
    refused += expected ? 0 : 1;
    EXPECT_EQ(check_linearizable(history).empty(), expected) << "round " << round;
  }
  EXPECT_GT(refused, 100);
  EXPECT_LT(refused, 2990);
}

TEST(HistoryText, ShowsAnOperation) {
  Operation operation{.client = 3, .sequence = 17, .kind = OperationKind::kIncrement, .key = "n",
                      .argument = {}, .invoked = Moment(1'250'000'000), .returned = {}, .answer = {}};
  EXPECT_EQ(to_text(operation), "client 3 #17 increment n, from 1.250000 s, never answered");
  operation.returned = Moment(1'251'000'000);
  operation.answer.value = encode_number(5);
  EXPECT_EQ(to_text(operation), "client 3 #17 increment n -> 5, from 1.250000 s to 1.251000 s");
}

}  // namespace
}  // namespace pollux::chaos
