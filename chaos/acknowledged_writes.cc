#include "chaos/acknowledged_writes.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <optional>
#include <set>

namespace pollux::chaos {
namespace {

struct Counter {
  bool only_counted = true;
  std::uint64_t acknowledged = 0;
  std::uint64_t open = 0;
  std::set<std::string> answers;
  std::optional<std::string> answered_twice;
  Moment last_return{};
  const Operation* last_read = nullptr;
};

void count(Counter& counter, const Operation& operation) {
  if (operation.kind == OperationKind::kPut) counter.only_counted = false;
  if (operation.kind == OperationKind::kIncrement) {
    ++(operation.returned ? counter.acknowledged : counter.open);
    if (operation.returned && !counter.answers.insert(operation.answer.value).second) {
      counter.answered_twice = value_text(operation.answer.value);
    }
  }
  if (operation.kind == OperationKind::kGet && operation.returned &&
      (counter.last_read == nullptr || operation.invoked > counter.last_read->invoked)) {
    counter.last_read = &operation;
  }
}

}  // namespace

std::vector<std::string> check_counters(const History& history) {
  std::map<std::string, Counter> counters;
  for (const Operation& operation : history) count(counters[operation.key], operation);
  for (const Operation& operation : history) {
    Counter& counter = counters[operation.key];
    if (operation.returned && &operation != counter.last_read) {
      counter.last_return = std::max(counter.last_return, *operation.returned);
    }
  }
  std::vector<std::string> findings;
  for (const auto& [key, counter] : counters) {
    if (!counter.only_counted) continue;
    if (counter.answered_twice) findings.push_back(fmt::format("{}: two increments answered {}", key, *counter.answered_twice));
    if (counter.last_read == nullptr || counter.last_read->invoked < counter.last_return) continue;
    const Answer& answer = counter.last_read->answer;
    const auto value = answer.outcome == Outcome::kMissing ? std::optional<std::uint64_t>(0) : decode_number(answer.value);
    if (!value || *value < counter.acknowledged || *value > counter.acknowledged + counter.open) {
      findings.push_back(fmt::format("{}: {} increments were acknowledged, {} are open, and its last value is {}", key,
                                     counter.acknowledged, counter.open, value ? std::to_string(*value) : "no number"));
    }
  }
  return findings;
}

}  // namespace pollux::chaos
