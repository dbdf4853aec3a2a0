// The responses that left the replicas' TAPs, and what they prove: that at most one replica answers in a term, and none any
// more once a later term has answered.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "chaos/history.h"

namespace pollux::chaos {

// One response of the key-value server, as it left a TAP.
struct AnswerFrame {
  Moment at{};
  std::size_t host = 0;
  std::uint64_t client = 0;
  std::uint64_t sequence = 0;
  bool old_request = false;  // a repetition that came late: it says so, and nothing else
  std::uint64_t digest = 0;  // of the whole response
};

// One process on a host, from its start to the next one's there.
struct Incarnation {
  std::string name;
  std::size_t host = 0;
  Moment started{};
  std::vector<std::uint64_t> terms;  // that it won, ascending
  std::size_t machine = 0;           // whose terms these are: counts how often the guest was booted anew, from a disk
};

// One line each; none: all is well. `frames` in the order in which they left, `incarnations` in the order of their start.
[[nodiscard]] std::vector<std::string> check_answer_frames(const std::vector<AnswerFrame>& frames,
                                                           const std::vector<Incarnation>& incarnations);

}  // namespace pollux::chaos
