// Sleeps, and prints each tick of its timer: ticks=N (10), period_ms=N (100). until_told=1: see rounds.h.
#include "tests/guests/lockstep/rounds.h"
#include "vmm/guest/runtime/guest.h"

using namespace pollux::guest;

int guest_main() {
  const std::uint64_t ticks = parameter("ticks", 10), period_ns = parameter("period_ms", 100) * 1'000'000;
  std::uint64_t due = clock_ns();
  Rounds all(ticks);
  for (std::uint64_t tick = 0; all.follows(tick); ++tick) {
    due += period_ns;
    sleep_until(due);
    print("tick ", tick + 1, "\n");
  }
  return 0;
}
