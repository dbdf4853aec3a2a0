// What the VMM's own part of a pause costs on this host's KVM: pause, harvest, save, resume.
#include <fmt/format.h>

#include <chrono>
#include <vector>

#include "tests/bench/median.h"
#include "tests/support/test_machine.h"

namespace pollux {
namespace {

using bench::median;
using Clock = std::chrono::steady_clock;

constexpr std::uint64_t kMemory = std::uint64_t{256} << 20;
constexpr int kRounds = 101;

template <class Function>
double microseconds(Function&& function) {
  const auto start = Clock::now();
  function();
  return std::chrono::duration<double, std::micro>(Clock::now() - start).count();
}

void measure(vmm::DirtyLog log, std::uint64_t pages) {
  testing::TestMachine test(kMemory, {.dirty_log = log, .epoch_length = {}});
  vmm::Machine& machine = test.machine();
  machine.start_dirty_tracking();
  machine.resume();
  test.writer().request(guests::WriterMode::kCycle, pages);
  POLLUX_ASSERT(test.writer().wait_until_served());
  std::vector<double> pause, harvest, save, resume;
  std::size_t dirty = 0;
  for (int round = 0; round < kRounds; ++round) {
    const std::uint64_t rounds = test.writer().rounds();
    POLLUX_ASSERT(testing::eventually([&] { return test.writer().rounds() > rounds + 1; }));
    pause.push_back(microseconds([&] { machine.pause(); }));
    harvest.push_back(microseconds([&] { dirty = machine.harvest_dirty_pages().size(); }));
    save.push_back(microseconds([&] { (void)machine.save(); }));
    resume.push_back(microseconds([&] { machine.resume(); }));
  }
  fmt::print("{:>6} {:>7} {:>7} {:>9.0f} {:>9.0f} {:>9.0f} {:>9.0f}\n",
             log == vmm::DirtyLog::kRing ? "ring" : "bitmap", pages, dirty, median(pause), median(harvest),
             median(save), median(resume));
}

}  // namespace
}  // namespace pollux

int main() {
  using pollux::vmm::DirtyLog;
  fmt::print("Medians of {} rounds, in us; 1 vCPU, 256 MiB.\n", pollux::kRounds);
  fmt::print("{:>6} {:>7} {:>7} {:>9} {:>9} {:>9} {:>9}\n", "log", "pages", "dirty", "pause", "harvest",
             "save", "resume");
  for (const DirtyLog log : {DirtyLog::kRing, DirtyLog::kBitmap}) {
    for (const std::uint64_t pages : {1u, 64u, 1024u, 4096u, 16384u}) pollux::measure(log, pages);
  }
}
