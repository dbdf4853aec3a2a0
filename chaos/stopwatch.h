// The one clock of a campaign: everything in its history and report is told in the time since its start.
#pragma once

#include <chrono>

#include "chaos/history.h"

namespace pollux::chaos {

class Stopwatch {
 public:
  using Clock = std::chrono::steady_clock;
  [[nodiscard]] Moment now() const { return Clock::now() - start_; }
  [[nodiscard]] Clock::time_point start() const { return start_; }

 private:
  Clock::time_point start_ = Clock::now();
};

}  // namespace pollux::chaos
