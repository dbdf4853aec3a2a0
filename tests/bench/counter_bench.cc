// What counting costs: each kernel of the compute guest, compiled with and without counter sites, on this
// host's KVM with one epoch for all of it; and what an epoch costs. usage: counter_bench
// [KERNEL...]
#include <fmt/format.h>

#include <algorithm>
#include <sstream>
#include <string>
#include <vector>

#include "base/error.h"
#include "tests/support/deterministic_guest.h"
#include "tests/support/test_machine.h"
#include "vmm/guest/abi.h"

namespace pollux {
namespace {

constexpr int kRuns = 31;  // the fastest counts: the host has other work
constexpr std::uint64_t kShortEpoch = 10'000;

const std::vector<std::string> kKernels{"hash_chain", "vector_sum", "byte_scan", "sorting",      "matrix",
                                        "sieve",      "recursion",  "copying",   "pointer_chase"};

struct Run {
  double milliseconds = 0;
  std::uint64_t epochs = 0;
  std::string checksum;
};

Run run(const std::string& guest, const std::string& kernel, std::uint64_t epoch_length) {
  testing::DeterministicGuestConfig config;
  config.kernel = guest;
  config.command_line = "timed=1 kernel=" + kernel;
  config.clock = testing::GuestClock::kProcessor;
  testing::DeterministicGuest machine(config);
  std::uint64_t epochs = 0;
  for (; !machine.machine().exit(); ++epochs) (void)machine.machine().record_epoch({epoch_length});
  const std::string console = machine.console();
  std::istringstream words(console);
  std::string name, unit;
  Run run;
  double nanoseconds = 0;
  if (!(words >> name >> run.checksum >> unit >> nanoseconds))
    throw Error(guest + ": " + console + machine.machine().exit()->detail);
  run.milliseconds = nanoseconds / 1e6;
  run.epochs = epochs;
  return run;
}

void measure(const std::string& kernel) {
  double plain = 1e9, unrolled = 1e9, counted = 1e9, with_exits = 1e9;
  std::uint64_t epochs = 0;
  for (int i = 0; i < kRuns; ++i) {
    const Run a = run("compute_plain", kernel, guest_abi::kMaxCount);
    const Run u = run("compute_uncounted", kernel, guest_abi::kMaxCount);
    const Run b = run("compute", kernel, guest_abi::kMaxCount);
    const Run c = run("compute", kernel, kShortEpoch);
    if (a.checksum != u.checksum || a.checksum != b.checksum || b.checksum != c.checksum)
      throw Error(kernel + ": checksums differ");
    plain = std::min(plain, a.milliseconds);
    unrolled = std::min(unrolled, u.milliseconds);
    counted = std::min(counted, b.milliseconds);
    with_exits = std::min(with_exits, c.milliseconds);
    epochs = c.epochs;
  }
  const double sites = static_cast<double>(epochs) * kShortEpoch;
  const auto overhead = [&](double of) { return fmt::format("{:+.1f}%", (counted / of - 1) * 100); };
  fmt::print("{:<14} {:>9.3f} {:>9.3f} {:>9.3f} {:>9} {:>9} {:>8.2f} {:>9.1f} {:>9.1f}\n", kernel, plain,
             unrolled, counted, overhead(plain), overhead(unrolled), sites / 1e6, sites / counted / 1e3,
             (with_exits - counted) * 1e3 / static_cast<double>(epochs));
}

}  // namespace
}  // namespace pollux

int main(int argc, char** argv) {
  if (const std::string why = pollux::testing::why_no_kvm(); !why.empty()) {
    fmt::print(stderr, "counter_bench: {}\n", why);
    return 1;
  }
  fmt::print("Processor times in ms, best of {} runs; overhead of counted over plain and over unrolled.\n",
             pollux::kRuns);
  fmt::print("{:<14} {:>9} {:>9} {:>9} {:>9} {:>9} {:>8} {:>9} {:>9}\n", "kernel", "plain", "unrolled",
             "counted", "overhead", "overhead", "Msites", "sites/us", "us/epoch");
  const std::vector<std::string> asked(argv + 1, argv + argc);
  for (const std::string& kernel : asked.empty() ? pollux::kKernels : asked) pollux::measure(kernel);
}
