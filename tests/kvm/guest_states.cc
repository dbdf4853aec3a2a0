// Runs a lockstep guest and prints what it prints, and one line that stands for every state it went through: tests
// compare that of one host with another's. usage: guest_states GUEST SITES_PER_EPOCH [COMMAND_LINE]
#include <fmt/format.h>

#include <exception>
#include <string>

#include "tests/support/deterministic_guest.h"

int main(int argc, char** argv) {
  using namespace pollux;
  if (argc < 3) {
    fmt::print(stderr, "usage: guest_states GUEST SITES_PER_EPOCH [COMMAND_LINE]\n");
    return 2;
  }
  try {
    testing::DeterministicGuestConfig config;
    config.kernel = argv[1];
    config.command_line = argc > 3 ? argv[3] : "";
    config.disks = {std::uint64_t{4} << 20};
    config.clock = testing::GuestClock::kMadeUp;
    config.options.disks = vmm::DiskMode::kAtEpochEnd;
    testing::DeterministicGuest guest(config);
    const testing::RecordedRun run = guest.record({std::stoull(argv[2])});
    fmt::print("{}{} epochs {} digest {}\n", guest.console(), run.exit->detail, run.epochs.size(),
               to_string(run.digest()));
    return run.ended() ? 0 : 1;
  } catch (const std::exception& error) {
    fmt::print(stderr, "guest_states: {}\n", error.what());
    return 2;
  }
}
