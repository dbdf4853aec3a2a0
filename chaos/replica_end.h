// How a replica ended, by its exit code and its log, and whether what was done to it explains that: a replica
// that gives up for a reason of its own is a bug, however well the machine goes on without it.
#pragma once

#include <string>
#include <vector>

namespace pollux::chaos {

// What a campaign has done to a replica since its start.
struct Treatment {
  bool disk_harmed = false;
  bool memory_harmed = false;
  // It, or the replica that it runs in lockstep with, was harmed so that their states may have parted.
  bool may_diverge = false;
  bool told_to_hand_over = false;
  bool told_to_end = false;  // or its peer was
};

struct ReplicaEnd {
  int exit_code = 0;    // as ChildProcess has it
  bool killed = false;  // by the campaign
  std::string log;
};

// One line for everything that nothing explains, up to a few; none: it ended by the rules.
[[nodiscard]] std::vector<std::string> check_end(const ReplicaEnd& end, const Treatment& treatment);

}  // namespace pollux::chaos
