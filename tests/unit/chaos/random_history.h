// Histories of a real linearizable execution, from a seed: every operation takes effect at one random instant between
// its invocation and its answer.
#pragma once

#include <map>
#include <queue>
#include <random>

#include "chaos/history.h"
#include "chaos/kv_model.h"

namespace pollux::chaos::testing {

struct HistoryShape {
  std::size_t operations = 300;
  std::uint64_t clients = 5;
  std::uint64_t keys = 3;  // of either kind: registers r0.. (put, get), counters c0.. (increment, get)
  bool lose_last_answers = true;
};

inline History random_history(std::uint64_t seed, const HistoryShape& shape = {}) {
  std::mt19937_64 random(seed);
  const auto below = [&](std::uint64_t bound) { return random() % bound; };
  struct Effect {
    Moment at;
    std::size_t operation;
    Moment returned;
    bool operator>(const Effect& other) const { return at > other.at; }
  };
  std::priority_queue<Effect, std::vector<Effect>, std::greater<>> effects;
  std::vector<Moment> free_at(shape.clients + 1, Moment{0});
  std::map<std::string, KeyState> store;
  History history;
  const auto take_effects_until = [&](Moment now) {
    while (!effects.empty() && effects.top().at <= now) {
      Operation& operation = history[effects.top().operation];
      Step step = carry_out(store[operation.key], operation);
      store[operation.key] = step.state;
      operation.answer = step.answer;
      operation.returned = effects.top().returned;
      effects.pop();
    }
  };
  while (history.size() < shape.operations) {
    std::uint64_t client = 1;
    for (std::uint64_t other = 2; other <= shape.clients; ++other) {
      if (free_at[other] < free_at[client]) client = other;
    }
    Operation operation;
    operation.client = client;
    operation.sequence = history.size() + 1;
    operation.invoked = free_at[client] + Moment(1 + below(50));
    take_effects_until(operation.invoked);
    const bool counter = below(2) == 0;
    operation.key = (counter ? "c" : "r") + std::to_string(below(shape.keys));
    if (below(2) == 0) {
      operation.kind = OperationKind::kGet;
    } else if (counter) {
      operation.kind = OperationKind::kIncrement;
    } else {
      operation.kind = OperationKind::kPut;
      operation.argument = "v" + std::to_string(operation.sequence);  // every value once
    }
    const Moment effect = operation.invoked + Moment(1 + below(100));
    const Moment returned = effect + Moment(1 + below(100));
    free_at[client] = returned;
    effects.push({effect, history.size(), returned});
    history.push_back(operation);
  }
  take_effects_until(Moment::max());
  if (shape.lose_last_answers) {
    std::vector<bool> lost(shape.clients + 1);
    for (auto operation = history.rbegin(); operation != history.rend(); ++operation) {
      if (lost[operation->client]) continue;
      lost[operation->client] = true;  // a client's last one only: it has one under way
      operation->returned.reset();
      operation->answer = {};
    }
  }
  return history;
}

}  // namespace pollux::chaos::testing
