// How long a guest goes on: so many rounds; or, with until_told=1, until something is typed on its console. Then it says
// how many it were, so that another run can be made to do the same.
#pragma once

#include "vmm/guest/runtime/guest.h"
#include "vmm/guest/runtime/input.h"

class Rounds {
 public:
  explicit Rounds(std::uint64_t count)
      : count_(count), input_(pollux::guest::parameter("until_told", 0) != 0 ? new pollux::guest::ConsoleInput : nullptr) {}

  // Another one, behind as many.
  [[nodiscard]] bool follows(std::uint64_t done) {
    if (input_ == nullptr) return done < count_;
    std::uint8_t typed = 0;
    if (!input_->read(typed)) return true;
    pollux::guest::print("told after ", done, " rounds\n");
    return false;
  }

 private:
  std::uint64_t count_;
  pollux::guest::ConsoleInput* input_;
};
