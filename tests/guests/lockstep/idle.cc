// Sleeps, and prints each tick of its timer: ticks=N (10), period_ms=N (100).
#include "vmm/guest/runtime/guest.h"

using namespace pollux::guest;

int guest_main() {
  const std::uint64_t ticks = parameter("ticks", 10), period_ns = parameter("period_ms", 100) * 1'000'000;
  std::uint64_t due = clock_ns();
  for (std::uint64_t tick = 1; tick <= ticks; ++tick) {
    due += period_ns;
    sleep_until(due);
    print("tick ", tick, "\n");
  }
  return 0;
}
