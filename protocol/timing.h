// How long replicas wait for each other.
#pragma once

#include <chrono>

namespace pollux::protocol {

struct Timing {
  std::chrono::nanoseconds heartbeat_interval = std::chrono::milliseconds(100);
  std::chrono::nanoseconds silence_timeout = std::chrono::seconds(1);  // longer than the interval
  std::chrono::nanoseconds arbitration_retry = std::chrono::milliseconds(200);    // after an unreachable arbiter
};

}  // namespace pollux::protocol
