// Where an epoch's time goes in the deterministic machine, on this host's KVM: for short epochs, so that what is inside
// KVM_RUN is the exit and the way back, not the guest's computation.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <utility>
#include <vector>

#include "base/error.h"
#include "tests/bench/median.h"
#include "tests/support/deterministic_guest.h"

namespace pollux {
namespace {

using Clock = std::chrono::steady_clock;

struct Row {
  const char* what;
  testing::DeterministicGuestConfig guest;
  vmm::EpochLength length;
};

struct Sample {
  double total, guest, inject, serve, harvest, digest, exits, pages;
};

double median(const std::vector<Sample>& samples, double Sample::*field) {
  std::vector<double> values;
  for (const Sample& sample : samples) values.push_back(sample.*field);
  return bench::median(std::move(values));
}

double microseconds(std::chrono::nanoseconds time) { return std::chrono::duration<double, std::micro>(time).count(); }

Sample sample_of(const vmm::EpochEnd& end, std::chrono::nanoseconds total) {
  const vmm::EpochTimes& t = end.times;
  return {microseconds(total - t.waited), microseconds(t.guest),   microseconds(t.inject),
          microseconds(t.serve),          microseconds(t.harvest), microseconds(t.digest),
          static_cast<double>(t.exits),   static_cast<double>(end.digest.pages.size())};
}

void print(const char* what, const char* log, const std::vector<Sample>& samples) {
  if (samples.empty()) return;
  fmt::print("{:<22} {:>6} {:>7} {:>6.0f} {:>6.0f} {:>8.1f} {:>8.1f} {:>8.1f} {:>8.1f} {:>8.1f} {:>8.1f}\n", what, log,
             samples.size(), median(samples, &Sample::exits), median(samples, &Sample::pages),
             median(samples, &Sample::total), median(samples, &Sample::guest), median(samples, &Sample::inject),
             median(samples, &Sample::serve), median(samples, &Sample::harvest), median(samples, &Sample::digest));
}

void measure(const Row& row, vmm::DirtyLog log, std::size_t epochs) {
  testing::DeterministicGuestConfig config = row.guest;
  config.options.dirty_log = log;
  testing::DeterministicGuest guest(config);
  std::vector<Sample> samples;
  // The boot's epochs are of another kind.
  constexpr std::uint64_t kSkipped = 50;
  while (!guest.machine().exit() && samples.size() < epochs) {
    const auto start = Clock::now();
    const vmm::EpochEnd end = guest.machine().record_epoch(row.length);
    if (end.number.value >= kSkipped) samples.push_back(sample_of(end, Clock::now() - start));
  }
  print(row.what, log == vmm::DirtyLog::kRing ? "ring" : "bitmap", samples);
}

int run(int argc, char** argv) {
  CLI::App app("Where an epoch's time goes in the deterministic machine, on /dev/kvm.");
  std::size_t epochs = 2000;
  app.add_option("--epochs", epochs, "epochs to measure for each row")->capture_default_str();
  CLI11_PARSE(app, argc, argv);
  constexpr std::uint64_t kMiB = std::uint64_t{1} << 20;
  const auto writer = [](std::uint64_t memory, const char* parameters) {
    testing::DeterministicGuestConfig config;
    config.kernel = "memory_writer";
    config.command_line = parameters;
    config.memory_bytes = memory;
    return config;
  };
  const std::vector<Row> rows{
      {"1 page, 64 MiB", writer(64 * kMiB, "pages=1 rounds=100000000"), {50}},
      {"16 pages, 64 MiB", writer(64 * kMiB, "pages=16 rounds=100000000"), {100}},
      {"64 pages, 64 MiB", writer(64 * kMiB, "pages=64 rounds=100000000"), {200}},
      {"1000 pages, 64 MiB", writer(64 * kMiB, "pages=1000 rounds=100000000"), {2000}},
      {"16 pages, 1 GiB", writer(1024 * kMiB, "pages=16 rounds=100000000"), {100}},
      {"timer, 64 MiB", {.kernel = "idle", .command_line = "ticks=1000000 period_ms=1", .memory_bytes = 64 * kMiB}, {1000000}},
  };
  fmt::print("Medians, in us. total: without waiting for inputs; guest: inside KVM_RUN.\n");
  fmt::print("{:<22} {:>6} {:>7} {:>6} {:>6} {:>8} {:>8} {:>8} {:>8} {:>8} {:>8}\n", "guest", "log", "epochs", "exits",
             "pages", "total", "guest", "inject", "serve", "harvest", "digest");
  for (const Row& row : rows) {
    for (const vmm::DirtyLog log : {vmm::DirtyLog::kRing, vmm::DirtyLog::kBitmap}) measure(row, log, epochs);
  }
  return 0;
}

}  // namespace
}  // namespace pollux

int main(int argc, char** argv) {
  try {
    return pollux::run(argc, argv);
  } catch (const pollux::Error& error) {
    fmt::print(stderr, "epoch_cost: {}\n", error.what());
    return 1;
  }
}
