// A guest reduced to what replication is about: a state that depends on every input before, outputs that show
// it, and flushes of a disk. Its inputs are random, so two replicas that run it from the same state part ways
// at once.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "protocol/types.h"
#include "random.h"

namespace pollux::sim {

// A point of an execution: how many steps were made, and the state after the last.
struct GuestState {
  std::size_t position = 0;
  std::uint64_t hash = 0;
  bool operator==(const GuestState&) const = default;
};

class Guest {
 public:
  Guest() = default;
  // Goes on from a point of another execution.
  Guest(const Guest& other, std::size_t position)
      : history_(other.history_.begin(), other.history_.begin() + static_cast<std::ptrdiff_t>(position)) {}

  // Some steps, each with a request of the client and an output.
  void run(Random& random) {
    const std::uint64_t steps = 1 + random.below(3);
    for (std::uint64_t i = 0; i < steps; ++i) history_.push_back(mix(state().hash, random.next()));
  }
  [[nodiscard]] GuestState state() const { return at(history_.size()); }
  [[nodiscard]] GuestState at(std::size_t position) const {
    return {position, position == 0 ? 0 : history_[position - 1]};
  }

 private:
  std::vector<std::uint64_t> history_;  // the state after each step
};

// What the guest emitted in one epoch: the outputs of the steps from `from` up to `to`.
struct Outputs {
  protocol::EpochId epoch;  // 0: before there were epochs
  std::size_t from = 0;
  std::size_t to = 0;
  protocol::EpochId needs_durable{};  // released when the own disk holds the flushes up to this epoch
};

}  // namespace pollux::sim
