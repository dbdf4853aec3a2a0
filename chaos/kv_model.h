// What one key of the key-value server (tests/guests/lockstep/kv_server.cc) is: its sequential specification.
#pragma once

#include <optional>
#include <string>

#include "chaos/history.h"

namespace pollux::chaos {

// Nothing: the key does not exist.
using KeyState = std::optional<std::string>;

struct Step {
  KeyState state;  // afterwards
  Answer answer;
};

// The operation carried out on a key in this state.
[[nodiscard]] Step carry_out(const KeyState& state, const Operation& operation);

}  // namespace pollux::chaos
