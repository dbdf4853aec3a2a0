// The state machines' tests are scripts: events in, the exact effects out as lines of text.
#pragma once

#include <gtest/gtest.h>

#include <chrono>
#include <string>
#include <vector>

#include "protocol/types.h"

namespace pollux::protocol {

using namespace std::chrono_literals;
using Lines = std::vector<std::string>;

// The scripts' clock: it moves only by advance().
class Clock {
 public:
  void advance(std::chrono::nanoseconds by) { now_ += by; }
  [[nodiscard]] TimePoint now() const { return now_; }

 private:
  TimePoint now_ = TimePoint(1h);
};

template <class Effects>
Lines lines(const Effects& effects) {
  Lines lines;
  for (const auto& effect : effects) lines.push_back(to_string(effect));
  return lines;
}

}  // namespace pollux::protocol
