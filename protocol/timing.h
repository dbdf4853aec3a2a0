// How long replicas wait for each other.
#pragma once

#include <chrono>

namespace pollux::protocol {

struct Timing {
  std::chrono::nanoseconds heartbeat_interval = std::chrono::milliseconds(100);
  std::chrono::nanoseconds silence_timeout = std::chrono::seconds(1);  // longer than the interval
  std::chrono::nanoseconds arbitration_retry = std::chrono::milliseconds(200);    // after an unreachable arbiter
  // After a HandOver the backup is silent while it asks the arbiter; then the primary asks itself.
  std::chrono::nanoseconds handover_timeout = std::chrono::seconds(10);
};

}  // namespace pollux::protocol
