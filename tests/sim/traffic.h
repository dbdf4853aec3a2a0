// What happened on the links of a world.
#pragma once

#include <cstdint>

namespace pollux::sim {

struct Traffic {
  std::uint64_t segments_lost = 0;
  std::uint64_t segments_repeated = 0;
  std::uint64_t segments_early = 0;  // before one that was sent earlier
  std::uint64_t links_given_up = 0;  // by TCP
  std::uint64_t frames_lost = 0;     // below TCP, as the next two
  std::uint64_t frames_repeated = 0;
  std::uint64_t frames_swapped = 0;
  std::uint64_t frames_refused = 0;  // by a session

  Traffic& operator+=(const Traffic& more) {
    segments_lost += more.segments_lost;
    segments_repeated += more.segments_repeated;
    segments_early += more.segments_early;
    links_given_up += more.links_given_up;
    frames_lost += more.frames_lost;
    frames_repeated += more.frames_repeated;
    frames_swapped += more.frames_swapped;
    frames_refused += more.frames_refused;
    return *this;
  }
};

}  // namespace pollux::sim
