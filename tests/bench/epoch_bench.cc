// What an epoch costs: the guest's pause, the commit latency and the bytes, against the pages dirtied in it, beside
// a plain memcpy of as many pages in the same run. A real machine on /dev/kvm, protected by a real backup through
// the real link on loopback.
#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <atomic>
#include <boost/json.hpp>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <thread>
#include <vector>

#include "backup/backup.h"
#include "base/error.h"
#include "primary/primary.h"
#include "tests/support/test_machine.h"
#include "vmm/make_machine.h"

namespace pollux {
namespace {

using namespace std::chrono_literals;
using Clock = std::chrono::steady_clock;

constexpr std::uint64_t kMemory = 256 << 20;
// On the development machines the first write to a clean page costs the guest about 3 us: an epoch must be long
// enough for the guest to reach all its pages.
constexpr auto kPerPage = 10us;
constexpr auto kShortestEpoch = 20ms;
constexpr int kSkippedExit = 77;  // as Automake and CTest have it

struct Row {
  std::uint64_t pages = 0;
  std::uint64_t memcpy_us = 0;
  primary::Summary epochs;
  [[nodiscard]] std::uint64_t target_us() const { return 2 * memcpy_us + 300; }
};

// The median time of copying the `pages` pages of guest memory that the guest is going to write, into a buffer that is in
// use already. They are written here first: memory that nobody has written is one page of zeros, which never leaves the cache.
std::uint64_t memcpy_us(vmm::GuestMemory& memory, std::uint64_t pages) {
  for (std::uint64_t page = 0; page < pages; ++page) {
    const vmm::GuestAddress address{guests::kArenaAddress + page * kPageSize};
    POLLUX_ASSERT(memory.write(address, ByteView(reinterpret_cast<const std::byte*>(&page), sizeof page)));
  }
  const auto from = memory.view(vmm::GuestAddress{guests::kArenaAddress}, pages * kPageSize);
  Bytes into(pages * kPageSize);
  std::vector<std::uint64_t> times;
  for (int i = 0; i < 21; ++i) {
    const auto start = Clock::now();
    for (std::uint64_t page = 0; page < pages; ++page) {
      std::memcpy(into.data() + page * kPageSize, from->data() + page * kPageSize, kPageSize);
    }
    times.push_back(static_cast<std::uint64_t>(std::chrono::duration_cast<std::chrono::microseconds>(Clock::now() - start).count()));
  }
  std::nth_element(times.begin(), times.begin() + 10, times.end());
  return times[10];
}

// Threads beside the primary's, ended on every way out.
class Helpers {
 public:
  Helpers(primary::Primary& primary, backup::Backup& backup) : primary_(primary), backup_(backup) {}
  Helpers(const Helpers&) = delete;
  Helpers& operator=(const Helpers&) = delete;
  ~Helpers() {
    ended_ = true;
    backup_.stop();
    if (stopper_.joinable()) stopper_.join();
    if (backup_thread_.joinable()) backup_thread_.join();
  }

  void run_backup(vmm::Backends& backends) {
    backup_thread_ = std::thread([this, &backends] { (void)backup_.run(backends); });
  }
  void stop_primary_after(std::uint64_t epochs) {
    stopper_ = std::thread([this, epochs] {
      while (!ended_ && primary_.statistics().summary().committed.value < epochs) std::this_thread::sleep_for(5ms);
      primary_.stop();
    });
  }

 private:
  primary::Primary& primary_;
  backup::Backup& backup_;
  std::atomic<bool> ended_ = false;
  std::thread backup_thread_;
  std::thread stopper_;
};

Row measure(std::uint64_t pages, std::uint64_t epochs) {
  const auto primary_key = protocol::session::SecretKey::generate();
  const auto backup_key = protocol::session::SecretKey::generate();
  backup::BackupOptions backup_options;
  backup_options.listen = protocol::Address{"127.0.0.1", 0};
  backup_options.primary_keys = {primary_key.public_key()};
  backup_options.silence_timeout = 10s;
  backup::Backup backup(backup_options, backup_key);
  const auto backup_side = testing::no_backends();

  primary::PrimaryOptions options;
  options.backups.push_back({{"127.0.0.1", backup.port()}, backup_key.public_key()});
  options.epoch_length = std::chrono::duration_cast<std::chrono::milliseconds>(
      std::max<std::chrono::microseconds>(kShortestEpoch, pages * kPerPage));
  options.silence_timeout = 10s;
  primary::Primary primary(options);
  const auto primary_side = testing::no_backends();
  vmm::PassThroughInput input;
  Row row{pages, 0, {}};
  Helpers helpers(primary, backup);
  helpers.run_backup(*backup_side);
  helpers.stop_primary_after(epochs);
  (void)primary.run(primary_key, *primary_side, [&](vmm::OutputGate& output) {
    auto machine = vmm::boot_machine(testing::page_writer_config(kMemory), testing::page_writer_source(), *primary_side,
                                      input, output);
    row.memcpy_us = memcpy_us(machine->memory(), pages);
    testing::PageWriter(machine->memory()).request(guests::WriterMode::kCycle, pages);
    return machine;
  });
  row.epochs = primary.statistics().summary();
  return row;
}

boost::json::object to_json(const Row& row) {
  const primary::Summary& epochs = row.epochs;
  return {{"pages", row.pages},
          {"dirty_pages_p50", epochs.dirty_pages.p50},
          {"epochs", epochs.epochs},
          {"memcpy_us", row.memcpy_us},
          {"pause_us_p50", epochs.pause_us.p50},
          {"pause_us_p99", epochs.pause_us.p99},
          {"pause_us_max", epochs.pause_us.max},
          {"target_us", row.target_us()},
          {"met", epochs.pause_us.p50 <= row.target_us()},
          {"commit_latency_us_p50", epochs.commit_latency_us.p50},
          {"commit_latency_us_p99", epochs.commit_latency_us.p99},
          {"epoch_bytes_p50", epochs.epoch_bytes.p50}};
}

void print(const Row& row) {
  const primary::Summary& epochs = row.epochs;
  fmt::print("{:>6} {:>7} {:>10} {:>10} {:>10} {:>10} {:>7} {:>11} {:>11} {:>10}\n", row.pages, epochs.dirty_pages.p50,
             row.memcpy_us, epochs.pause_us.p50, epochs.pause_us.p99, row.target_us(),
             epochs.pause_us.p50 <= row.target_us() ? "met" : "MISSED", epochs.commit_latency_us.p50,
             epochs.commit_latency_us.p99, epochs.epoch_bytes.p50 >> 10);
  std::fflush(stdout);
}

int run(int argc, char** argv) {
  CLI::App app("Epoch pause, commit latency and bytes against the number of dirty pages, on /dev/kvm.");
  std::string json_path;
  std::uint64_t epochs = 100;
  std::vector<std::uint64_t> page_counts{16, 64, 256, 1024, 4096, 16384};
  app.add_option("--json", json_path, "also write the table to this file");
  app.add_option("--epochs", epochs, "epochs to measure for each row")->capture_default_str();
  app.add_option("--pages", page_counts, "pages dirtied in each epoch, one row each");
  CLI11_PARSE(app, argc, argv);
  spdlog::set_level(spdlog::level::warn);
  if (const std::string why = testing::why_no_kvm(); !why.empty()) {
    fmt::print("epoch_bench: skipped: {}\n", why);
    return kSkippedExit;
  }

  fmt::print("Target: p50 pause <= 2 x memcpy of as many pages + 300 us. Times in us, bytes in KiB.\n");
  fmt::print("{:>6} {:>7} {:>10} {:>10} {:>10} {:>10} {:>7} {:>11} {:>11} {:>10}\n", "pages", "dirtied", "memcpy",
             "pause p50", "pause p99", "target", "", "commit p50", "commit p99", "KiB/epoch");
  boost::json::array rows;
  for (const std::uint64_t pages : page_counts) {
    const Row row = measure(pages, epochs);
    print(row);
    rows.push_back(to_json(row));
  }
  if (!json_path.empty()) {
    std::ofstream file(json_path, std::ios::trunc);
    file << boost::json::serialize(boost::json::object{{"rows", rows}}) << "\n";
    if (!file.flush()) throw errno_error("write", json_path);
  }
  return 0;
}

}  // namespace
}  // namespace pollux

int main(int argc, char** argv) {
  try {
    return pollux::run(argc, argv);
  } catch (const pollux::Error& error) {
    fmt::print(stderr, "epoch_bench: {}\n", error.what());
    return 1;
  }
}
