#include "chaos/linearizability.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <map>
#include <set>
#include <unordered_map>
#include <unordered_set>

#include "chaos/kv_model.h"

namespace pollux::chaos {
namespace {

using Slots = std::uint64_t;  // a set of open operations, one bit each
static_assert(kMaxOpenOperations == 64);

// States by number: configurations are compared often.
class StateNames {
 public:
  std::uint32_t number_of(const KeyState& state) {
    const auto [entry, fresh] = numbers_.try_emplace(state ? "=" + *state : "", static_cast<std::uint32_t>(states_.size()));
    if (fresh) states_.push_back(state);
    return entry->second;
  }
  [[nodiscard]] const KeyState& operator[](std::uint32_t number) const { return states_[number]; }

 private:
  std::unordered_map<std::string, std::uint32_t> numbers_;
  std::vector<KeyState> states_;
};

struct Configuration {
  Slots done = 0;  // those of the open operations that have taken effect
  std::uint32_t state = 0;
  bool operator==(const Configuration&) const = default;
};

struct HashConfiguration {
  std::size_t operator()(const Configuration& configuration) const {
    return (configuration.done ^ std::uint64_t{configuration.state} << 40 ^ configuration.state) * 0x9e37'79b9'7f4a'7c15;
  }
};
using Configurations = std::unordered_set<Configuration, HashConfiguration>;

struct Event {
  Moment at;
  bool is_return;
  std::size_t operation;
};

// Judges one key.
class KeyCheck {
 public:
  explicit KeyCheck(const std::vector<const Operation*>& operations) : operations_(operations) {
    configurations_.insert({0, names_.number_of(std::nullopt)});
  }

  std::optional<NotLinearizable> run() {
    for (const Event& event : events()) {
      if (!event.is_return) {
        if (!open(event.operation)) return failure(event.operation, false);
        continue;
      }
      const Slots slot = slot_of_.at(event.operation);
      Configurations next;
      if (!linearize(slot, next)) return failure(event.operation, false);
      if (next.empty()) return failure(event.operation, true);
      close(event.operation, slot, next);
    }
    return std::nullopt;
  }

 private:
  [[nodiscard]] std::vector<Event> events() const {
    std::vector<Event> events;
    for (std::size_t i = 0; i < operations_.size(); ++i) {
      events.push_back({operations_[i]->invoked, false, i});
      if (operations_[i]->returned) events.push_back({*operations_[i]->returned, true, i});
    }
    std::stable_sort(events.begin(), events.end(), [](const Event& a, const Event& b) {
      return a.at != b.at ? a.at < b.at : a.is_return < b.is_return;
    });
    return events;
  }

  bool open(std::size_t operation) {
    if (open_ == ~Slots{0}) return false;
    const int free = std::countr_one(open_);
    open_ |= Slots{1} << free;
    in_slot_[static_cast<std::size_t>(free)] = operation;
    slot_of_[operation] = Slots{1} << free;
    return true;
  }

  // From here on the operation has taken effect in every configuration: its slot is free again.
  void close(std::size_t operation, Slots slot, const Configurations& next) {
    configurations_.clear();
    for (const Configuration& configuration : next) configurations_.insert({configuration.done & ~slot, configuration.state});
    open_ &= ~slot;
    slot_of_.erase(operation);
  }

  // Puts into `next` every configuration in which the operation in `slot` has just taken effect, or had before. False:
  // too many to decide.
  bool linearize(Slots slot, Configurations& next) {
    Configurations visited;
    std::vector<Configuration> stack;
    const auto reach = [&](const Configuration& configuration) {
      if ((configuration.done & slot) != 0) {
        next.insert(configuration);
      } else if (visited.insert(configuration).second) {
        stack.push_back(configuration);
      }
    };
    for (const Configuration& configuration : configurations_) reach(configuration);
    while (!stack.empty()) {
      if (visited.size() + next.size() > kMaxConfigurations) return false;
      const Configuration from = stack.back();
      stack.pop_back();
      for (Slots left = open_ & ~from.done; left != 0; left &= left - 1) {
        const int index = std::countr_zero(left);
        const Operation& operation = *operations_[in_slot_[static_cast<std::size_t>(index)]];
        const Step step = carry_out(names_[from.state], operation);
        if (operation.returned && step.answer != operation.answer) continue;
        reach({from.done | Slots{1} << index, names_.number_of(step.state)});
      }
    }
    if (next.empty()) stuck_ = std::move(visited);
    return true;
  }

  [[nodiscard]] NotLinearizable failure(std::size_t at, bool decided) const {
    NotLinearizable found;
    found.operation = *operations_[at];
    found.key = found.operation.key;
    found.decided = decided;
    for (Slots left = open_; left != 0 && found.concurrent.size() < kMaxEvidence; left &= left - 1) {
      const std::size_t other = in_slot_[static_cast<std::size_t>(std::countr_zero(left))];
      if (other != at) found.concurrent.push_back(*operations_[other]);
    }
    std::set<std::string> states;
    for (const Configuration& configuration : stuck_) {
      const KeyState& state = names_[configuration.state];
      if (states.size() < kMaxEvidence) states.insert(state ? value_text(*state) : "missing");
    }
    found.possible_states.assign(states.begin(), states.end());
    add_past(found);
    return found;
  }

  void add_past(NotLinearizable& found) const {
    std::vector<const Operation*> past;
    for (const Operation* operation : operations_) {
      if (operation->returned && *operation->returned < found.operation.invoked) past.push_back(operation);
    }
    std::sort(past.begin(), past.end(), [](const auto* a, const auto* b) { return *a->returned < *b->returned; });
    for (const Operation* operation : past) {
      const std::string& value = operation->kind == OperationKind::kPut ? operation->argument : operation->answer.value;
      if (operation->writes() && !found.operation.answer.value.empty() && value == found.operation.answer.value) {
        found.writer = *operation;
      }
    }
    const std::size_t shown = std::min(past.size(), kMaxEvidence);
    for (auto operation = past.end() - static_cast<std::ptrdiff_t>(shown); operation != past.end(); ++operation) {
      found.before.push_back(**operation);
    }
  }

  const std::vector<const Operation*>& operations_;
  StateNames names_;
  Configurations configurations_;
  Configurations stuck_;  // where the search ended when nothing explained an answer
  Slots open_ = 0;
  std::size_t in_slot_[kMaxOpenOperations] = {};
  std::unordered_map<std::size_t, Slots> slot_of_;
};

}  // namespace

std::string NotLinearizable::text() const {
  std::string text =
      decided ? fmt::format("key {}: not linearizable: nothing explains the answer of {}\n", key, to_text(operation))
              : fmt::format("key {}: not decided, too much is open at once at {}\n", key, to_text(operation));
  if (!possible_states.empty()) text += fmt::format("  the key could hold only: {}\n", fmt::join(possible_states, ", "));
  if (writer) text += "  that value is of " + to_text(*writer) + "\n";
  for (const Operation& other : concurrent) text += "  concurrent: " + to_text(other) + "\n";
  for (const Operation& earlier : before) text += "  before: " + to_text(earlier) + "\n";
  text.pop_back();
  return text;
}

std::vector<NotLinearizable> check_linearizable(const History& history) {
  std::map<std::string, std::vector<const Operation*>> by_key;
  for (const Operation& operation : history) by_key[operation.key].push_back(&operation);
  std::vector<NotLinearizable> found;
  for (const auto& [key, operations] : by_key) {
    if (auto failure = KeyCheck(operations).run()) found.push_back(std::move(*failure));
  }
  return found;
}

}  // namespace pollux::chaos
