// clone_machine: runs a stock kernel and, again and again, moves it into a fresh machine.
//
// Every interval: pause, save(), a copy of all memory, restore() into a new machine of the same process,
// resume. The guest's console goes on on standard output, so one sees (or a test checks) that it notices
// nothing. Prints what each step cost. For the lab and for real hardware; it needs a KVM that can boot a
// kernel.
#include <fmt/format.h>

#include <chrono>
#include <cstring>
#include <memory>
#include <string>

#include "base/error.h"
#include "vmm/gates/pass_through.h"
#include "vmm/machine/machine.h"
#include "vmm/make_machine.h"

namespace pollux {
namespace {

using Clock = std::chrono::steady_clock;
using std::chrono::milliseconds;

struct Arguments {
  vmm::BootSource source;
  std::string disk;
  std::uint64_t memory = std::uint64_t{128} << 20;
  std::uint32_t vcpus = 1;
  milliseconds interval{2000};
  int moves = 5;
};

Arguments parse(int argc, char** argv) {
  if (argc < 8) {
    throw UsageError("usage: clone_machine KERNEL INITRD COMMAND_LINE VCPUS INTERVAL_MS MOVES DISK|none");
  }
  Arguments arguments;
  arguments.source = {argv[1], argv[2], argv[3]};
  arguments.vcpus = static_cast<std::uint32_t>(std::stoul(argv[4]));
  arguments.interval = milliseconds(std::stol(argv[5]));
  arguments.moves = std::stoi(argv[6]);
  if (std::string(argv[7]) != "none") arguments.disk = argv[7];
  return arguments;
}

std::int64_t microseconds_since(Clock::time_point start) {
  return std::chrono::duration_cast<std::chrono::microseconds>(Clock::now() - start).count();
}

std::unique_ptr<vmm::GuestMemory> copy_of(const vmm::GuestMemory& memory) {
  auto copy = std::make_unique<vmm::GuestMemory>(memory.size());
  for (std::size_t i = 0; i < memory.regions().size(); ++i) {
    const auto& from = memory.regions()[i].bytes;
    std::memcpy(copy->regions()[i].bytes.data(), from.data(), from.size());
  }
  return copy;
}

// Into a new machine; the old one is gone when it runs.
std::unique_ptr<vmm::Machine> move_machine(std::unique_ptr<vmm::Machine> machine, vmm::Backends& backends,
                                           vmm::InputGate& input, vmm::OutputGate& output) {
  auto start = Clock::now();
  machine->pause();
  const auto pause_us = microseconds_since(start);
  start = Clock::now();
  const Bytes state = machine->save();
  const auto save_us = microseconds_since(start);
  auto memory = copy_of(machine->memory());
  const vmm::MachineConfig config = machine->config();
  machine.reset();
  start = Clock::now();
  machine = vmm::restore_machine(config, std::move(memory), state, backends, input, output);
  fmt::print(stderr, "moved: pause {} us, save {} us ({} bytes), restore {} us\n", pause_us, save_us,
             state.size(), microseconds_since(start));
  machine->resume();
  return machine;
}

int run(const Arguments& arguments) {
  std::vector<std::unique_ptr<vmm::Image>> disks;
  vmm::MachineConfig config;
  if (!arguments.disk.empty()) {
    disks.push_back(std::make_unique<vmm::Image>(arguments.disk, false));
    config.disks.push_back({disks.front()->size(), false});
  }
  vmm::Backends backends(std::move(disks), {}, vmm::open_console("stdio", [] {}),
                         vmm::open_console("none", [] {}));
  config.memory_bytes = arguments.memory;
  config.vcpus = arguments.vcpus;
  vmm::PassThroughInput input;
  vmm::PassThroughOutput output(backends);
  auto machine = vmm::boot_machine(config, arguments.source, backends, input, output);
  machine->resume();
  for (int move = 0;; ++move) {
    const auto time = move < arguments.moves ? arguments.interval : milliseconds(600'000);
    if (const auto exit = machine->wait_for_exit(time)) {
      const bool powered_off = exit->reason == vmm::ExitReason::kPowerOff;
      fmt::print(stderr, "{} {}\n", powered_off ? "powered off" : "ended otherwise:", exit->detail);
      return powered_off ? 0 : 1;
    }
    if (move < arguments.moves) machine = move_machine(std::move(machine), backends, input, output);
  }
}

}  // namespace
}  // namespace pollux

int main(int argc, char** argv) {
  try {
    return pollux::run(pollux::parse(argc, argv));
  } catch (const std::exception& error) {
    fmt::print(stderr, "clone_machine: {}\n", error.what());
    return 1;
  }
}
