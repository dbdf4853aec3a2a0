// Runs a lockstep guest on the smallest machine and prints one line that stands for every state it went
// through: tests compare that of one host with another's. usage: guest_states GUEST SITES_PER_EPOCH
// [COMMAND_LINE]
#include <fmt/format.h>

#include <exception>
#include <string>

#include "tests/support/epoch_machine.h"

int main(int argc, char** argv) {
  if (argc < 3) {
    fmt::print(stderr, "usage: guest_states GUEST SITES_PER_EPOCH [COMMAND_LINE]\n");
    return 2;
  }
  try {
    pollux::testing::EpochMachineConfig config;
    config.kernel = argv[1];
    config.epoch_length = std::stoull(argv[2]);
    config.command_line = argc > 3 ? argv[3] : "";
    config.disks = {std::uint64_t{4} << 20};
    config.digests = true;
    const auto result = pollux::testing::EpochMachine(config).run();
    std::uint64_t registers = 0;
    for (const std::uint64_t digest : result.digests)
      registers = (registers ^ digest) * 0x9e37'79b9'7f4a'7c15;
    fmt::print("{}exit {} {} epochs {} registers {:016x} memory {:016x}\n", result.console, result.exit_code,
               result.failure, result.epochs, registers, result.memory_digest);
    return result.exit_code == 0 ? 0 : 1;
  } catch (const std::exception& error) {
    fmt::print(stderr, "guest_states: {}\n", error.what());
    return 2;
  }
}
