// What goes wrong in a world, when, and for how long: drawn from its seed before it begins.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "event_queue.h"
#include "network.h"
#include "random.h"

namespace pollux::sim {

// Faults are most telling right at these.
enum class Moment : std::uint8_t {
  kTime,
  kSyncEnd,
  kLastRecords,  // a backup has lost its primary, and applies what is whole before it claims
  kClaim,
  kNewTerm,
  kPromote,
  kHandOver,
};

enum class FaultKind : std::uint8_t {
  kCrash,      // the process dies: its links end
  kPowerLoss,  // the host goes without a word
  kPause,      // stopped, and resumed as if nothing had happened
  kBreakLink,
  kStallOneWay,    // a partition in one direction
  kStallBothWays,  // a flap, or a partition
  kDelay,
  kLoss,        // of segments, which TCP sends again
  kRepetition,  // of segments, which TCP discards
  kReordering,  // of segments, which TCP puts in order
  kFrameLost,   // past TCP, as the next two
  kFrameRepeated,
  kFrameSwapped,
  kSlowDisk,
  kDiskFails,  // from here on
  kNoMemory,            // a backup ends; before its sync it refuses
  kArbiterUnreachable,  // for one replica
  kArbiterDown,         // for all
  kArbiterSlow,
  kOperatorStop,
  kSwitchover,  // an order to the primary: a backup is to lead
  kRelease,     // another: a backup is given up
};

struct Fault {
  FaultKind kind{};
  Moment moment = Moment::kTime;
  Time after{};   // the moment, or the world's beginning
  Time length{};  // of those that end
  std::size_t site = 0;     // its replica at that moment
  std::size_t backup = 0;   // the link to it; 0 is that of site 1
  Direction direction{};
  bool armed = false;  // its moment came
};

// Until `until` all have begun, but for those that wait for a moment. One site for the first primary, and one for each of
// `backups` backups.
[[nodiscard]] std::vector<Fault> draw_faults(Random& random, std::size_t backups, Time until);
[[nodiscard]] std::string to_string(const Fault& fault);

}  // namespace pollux::sim
