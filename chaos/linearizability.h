// Decides exactly whether a history is linearizable: whether every operation can be given one instant between its
// invocation and its answer such that, carried out in that order, each gives the answer that was seen.
//
// The algorithm is just-in-time linearization as a graph search (G. Lowe, "Testing for linearizability", 2017, section
// 4), a refinement of J. Wing and C. Gong, "Testing and verifying concurrent objects", 1993: events are taken in the
// order of time, and at each answer all configurations are kept that are possible then (which of the open operations
// have taken effect, and the state they left). An operation takes effect only when an answer needs it, equal
// configurations are visited once. Keys are independent objects and judged one by one (locality: Herlihy and Wing,
// 1990; A. Horn and D. Kroening, "Faster linearizability checking via P-compositionality", 2015).
//
// An answer and an invocation at the same instant count as concurrent.
#pragma once

#include <cstddef>
#include <optional>
#include <string>
#include <vector>

#include "chaos/history.h"

namespace pollux::chaos {

// Beyond one of these a history is not decided, and that is said; no campaign here comes near them.
inline constexpr std::size_t kMaxOpenOperations = 64;  // of one key at a time; those never answered stay open
inline constexpr std::size_t kMaxConfigurations = 1'000'000;

// How much of a key's history is shown as evidence.
inline constexpr std::size_t kMaxEvidence = 8;

struct NotLinearizable {
  std::string key;
  bool decided = true;  // false: a bound was reached before
  Operation operation;  // the first whose answer nothing explains; all before it are linearizable
  // States of the key in which it could have taken effect, as far as they are shown.
  std::vector<std::string> possible_states;
  std::vector<Operation> concurrent;  // open at its answer
  std::vector<Operation> before;      // the last ones of the key that were answered before it began
  std::optional<Operation> writer;    // the last put or increment of the value it answered, if there was one
  [[nodiscard]] std::string text() const;
};

// One for each key that is not linearizable; none: the history is.
[[nodiscard]] std::vector<NotLinearizable> check_linearizable(const History& history);

}  // namespace pollux::chaos
