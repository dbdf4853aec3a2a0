// No acknowledged write lost, by counting: a second, simpler proof beside linearizability.
#pragma once

#include <string>
#include <vector>

#include "chaos/history.h"

namespace pollux::chaos {

// For every key that was only incremented and read: its last value lies between the number of acknowledged increments and
// that number with those never answered, and no two increments answered the same. The last value is that of a read that
// began after every other operation of the key had been answered. One line for each key where it is not so; a key without
// such a read is passed over.
[[nodiscard]] std::vector<std::string> check_counters(const History& history);

}  // namespace pollux::chaos
