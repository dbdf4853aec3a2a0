// What lockstep costs: how much longer guests take, protected, than the same binary takes unprotected, by epoch length and
// commit rule; and what goes over the link for it, beside what `copy` sends. Primary and backup are the real ones, on
// this host's /dev/kvm, with the real link on loopback.
//
// A workload says when it has done another unit of work (a line on its console, an answered request); what is measured is
// the time that some units take, as they are seen outside, behind the output gate.
#include <fmt/format.h>
#include <poll.h>
#include <spdlog/spdlog.h>
#include <sys/socket.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <boost/json.hpp>
#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <future>
#include <iterator>
#include <map>
#include <mutex>
#include <optional>
#include <thread>
#include <vector>

#include "backup/backup.h"
#include "base/error.h"
#include "base/thread_name.h"
#include "primary/primary.h"
#include "tests/bench/median.h"
#include "tests/support/client_frames.h"
#include "tests/support/deterministic_guest.h"
#include "tests/support/socket_nic.h"
#include "tests/support/temporary_folder.h"
#include "tests/support/test_machine.h"
#include "vmm/make_machine.h"

namespace pollux {
namespace {

using namespace std::chrono_literals;
using bench::median;
using Clock = std::chrono::steady_clock;

constexpr std::uint64_t kMemory = std::uint64_t{64} << 20;
constexpr std::uint64_t kDiskBytes = std::uint64_t{8} << 20;
// What everything is compared with: no shorter epoch costs an unprotected guest less.
constexpr vmm::EpochLength kUnprotectedLength{1'000'000};
constexpr auto kGivenUp = 60s;
constexpr int kSkippedExit = 77;  // as Automake and CTest have it

struct Workload {
  const char* name;
  const char* guest;
  const char* command_line;
  const char* unit;  // a line that begins so; null: an answered request
};

// Each goes on for longer than it is measured.
constexpr Workload kWorkloads[] = {
    {"compute", "compute", "repeat=1000000", "pointer_chase"},
    {"memory-writer", "memory_writer", "pages=1000 rounds=100000000 told=200", "round"},
    {"disk-write", "disk_check", "blocks=256 rounds=1000000 reads=0", "round"},
    {"disk-read", "disk_check", "blocks=1024 rounds=1 reads=1000000", "round"},
    {"network", "kv_server", "ip=10.0.0.2", nullptr},
};

// Units of work, counted by one thread and awaited by another, which must not take time from what is measured.
class Progress {
 public:
  void add() {
    const std::lock_guard lock(mutex_);
    if (++units_ >= awaited_) changed_.notify_all();
  }
  [[nodiscard]] std::uint64_t units() const {
    const std::lock_guard lock(mutex_);
    return units_;
  }
  // False: they did not come.
  [[nodiscard]] bool wait_for(std::uint64_t units) {
    std::unique_lock lock(mutex_);
    awaited_ = units;
    const bool come = changed_.wait_for(lock, kGivenUp, [&] { return units_ >= units; });
    awaited_ = kNobody;
    return come;
  }

 private:
  static constexpr std::uint64_t kNobody = ~std::uint64_t{0};

  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::uint64_t units_ = 0;
  std::uint64_t awaited_ = kNobody;
};

class CountingScreen final : public vmm::ConsolePort {
 public:
  CountingScreen(const char* unit, Progress& progress) : unit_(unit), progress_(progress) {}
  [[nodiscard]] int poll_fd() const override { return -1; }
  [[nodiscard]] Bytes read() override { return {}; }
  void write(ByteView bytes) override {
    for (const std::byte byte : bytes) {
      const char c = static_cast<char>(byte);
      if (c != '\n') {
        line_.push_back(c);
        continue;
      }
      if (unit_ != nullptr && line_.starts_with(unit_)) progress_.add();
      line_.clear();
    }
  }

 private:
  const char* unit_;
  Progress& progress_;
  std::string line_;
};

// Sixteen clients of the key-value server, each with one request under way.
class Clients {
 public:
  Clients(int fd, Progress& progress) : fd_(fd), progress_(progress), thread_([this](const std::stop_token& stop) { run(stop); }) {}

 private:
  static constexpr std::size_t kCount = 16;
  static constexpr int kRepeatAfterMs = 100;

  void run(const std::stop_token& stop) {
    for (std::uint64_t client = 0; client < kCount; ++client) send(client);
    while (!stop.stop_requested()) {
      pollfd readable{fd_.get(), POLLIN, 0};
      if (::poll(&readable, 1, kRepeatAfterMs) == 0) {
        for (std::uint64_t client = 0; client < kCount; ++client) send(client);
        continue;
      }
      Bytes frame(vmm::kMaxFrame);
      const auto got = ::recv(fd_.get(), frame.data(), frame.size(), 0);
      guests::KvResponse response{};
      if (got != static_cast<ssize_t>(testing::kPayload + sizeof response)) continue;
      std::memcpy(&response, frame.data() + testing::kPayload, sizeof response);
      if (response.client >= kCount || response.sequence != sequence_[response.client]) continue;
      progress_.add();
      ++sequence_[response.client];
      send(response.client);
    }
  }
  void send(std::uint64_t client) {
    const auto request = testing::kv_request(guests::KvOperation::kIncrement, client, sequence_[client], "key" + std::to_string(client));
    const Bytes frame = testing::udp_frame(bytes_of(request));
    (void)::send(fd_.get(), frame.data(), frame.size(), MSG_NOSIGNAL);
  }

  Fd fd_;
  Progress& progress_;
  std::array<std::uint64_t, kCount> sequence_ = [] {
    std::array<std::uint64_t, kCount> first{};
    first.fill(1);
    return first;
  }();
  std::jthread thread_;
};

// A host's side of the workload's machine.
class Side {
 public:
  Side(const Workload& workload, const testing::TemporaryFolder& folder, const std::string& name) : workload_(workload) {
    std::vector<std::unique_ptr<vmm::Image>> disks;
    if (has_disk()) disks.push_back(std::make_unique<vmm::Image>(folder.make_file(name, kDiskBytes), false));
    std::vector<std::unique_ptr<vmm::Nic>> nics;
    if (has_nic()) {
      int pair[2];
      POLLUX_ASSERT(::socketpair(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0, pair) == 0);
      nics.push_back(std::make_unique<testing::SocketNic>(pair[0]));
      wire_ = Fd(pair[1]);
    }
    backends_ = std::make_unique<vmm::Backends>(std::move(disks), std::move(nics),
                                                std::make_unique<CountingScreen>(workload.unit, progress_),
                                                vmm::open_console("none", [] {}));
  }

  [[nodiscard]] vmm::Backends& backends() { return *backends_; }
  [[nodiscard]] Progress& progress() { return progress_; }
  // As long as the result lives.
  [[nodiscard]] std::unique_ptr<Clients> clients() {
    return has_nic() ? std::make_unique<Clients>(wire_.release(), progress_) : nullptr;
  }
  [[nodiscard]] std::unique_ptr<vmm::Machine> boot(vmm::InputGate& input, vmm::OutputGate& output, vmm::EpochLength length) {
    vmm::MachineConfig config;
    config.memory_bytes = kMemory;
    config.profile = vmm::MachineProfile::kDeterministic;
    if (has_disk()) config.disks.push_back({kDiskBytes, false});
    if (has_nic()) config.nics.push_back({testing::kGuestMac});
    return vmm::boot_machine(config, {testing::guest_path(workload_.guest), {}, workload_.command_line}, *backends_, input,
                             output, {.dirty_log = vmm::DirtyLog::kBitmap, .epoch_length = length});
  }

 private:
  [[nodiscard]] bool has_disk() const { return std::string(workload_.guest) == "disk_check"; }
  [[nodiscard]] bool has_nic() const { return workload_.unit == nullptr; }

  const Workload& workload_;
  Progress progress_;
  Fd wire_;
  std::unique_ptr<vmm::Backends> backends_;
};

struct Sample {
  double units_per_second = 0;
  double bytes_per_unit = 0;  // on the link: sealed frames, heartbeats among them
  double epochs_per_second = 0;
  primary::Summary summary;  // of all of the run
};

// From one unit's end to another's.
Sample measure_units(Progress& progress, std::chrono::milliseconds time, const std::function<primary::Summary()>& summary) {
  const auto units = [&](std::uint64_t so_many) {
    if (!progress.wait_for(so_many)) throw Error("the guest does not get on");
  };
  const std::uint64_t first = progress.units() + 1;
  units(first);
  const auto begin = Clock::now();
  const primary::Summary before = summary();
  std::this_thread::sleep_for(time);
  const std::uint64_t last = std::max(progress.units(), first) + 1;
  units(last);
  const std::uint64_t done = last - first;
  const double took = std::chrono::duration<double>(Clock::now() - begin).count();
  Sample sample{.units_per_second = static_cast<double>(done) / took, .summary = summary()};
  sample.bytes_per_unit = static_cast<double>(sample.summary.link_bytes_total - before.link_bytes_total) / static_cast<double>(done);
  sample.epochs_per_second = static_cast<double>(sample.summary.epochs - before.epochs) / took;
  return sample;
}

Sample measure_unprotected(const Workload& workload, std::chrono::milliseconds time) {
  const testing::TemporaryFolder folder;
  Side side(workload, folder, "disk");
  vmm::PassThroughInput input;
  vmm::PassThroughOutput output(side.backends());
  const auto machine = side.boot(input, output, kUnprotectedLength);
  machine->resume();
  const auto clients = side.clients();
  Sample sample = measure_units(side.progress(), time, [] { return primary::Summary{}; });
  machine->pause();
  return sample;
}

Sample measure_protected(const Workload& workload, std::chrono::milliseconds time, primary::PrimaryOptions options) {
  const testing::TemporaryFolder folder;
  const auto primary_key = protocol::session::SecretKey::generate();
  const auto backup_key = protocol::session::SecretKey::generate();
  backup::BackupOptions backup_options;
  backup_options.listen = protocol::Address{"127.0.0.1", 0};
  backup_options.primary_keys = {primary_key.public_key()};
  backup_options.silence_timeout = 20s;
  backup::Backup backup(backup_options, backup_key);
  Side there(workload, folder, "backup-disk");
  auto backup_end = std::async(std::launch::async, [&] {
    name_this_thread("backup");
    return backup.run(there.backends());
  });

  options.backups.push_back({{"127.0.0.1", backup.port()}, backup_key.public_key()});
  options.silence_timeout = 20s;
  primary::Primary primary(options);
  Side here(workload, folder, "disk");
  vmm::PassThroughInput input;
  auto primary_end = std::async(std::launch::async, [&] {
    name_this_thread("primary");  // which executes the guest in lockstep, as the applier does in the backup
    return primary.run(primary_key, here.backends(),
                       [&](vmm::OutputGate& gate) { return here.boot(input, gate, options.lockstep.epoch_length); });
  });
  const auto summary = [&] { return primary.statistics().summary(); };
  const auto deadline = Clock::now() + kGivenUp;
  while (summary().protection != "protected") {
    if (Clock::now() > deadline) throw Error("not protected in time");
    std::this_thread::sleep_for(1ms);
  }
  auto clients = here.clients();
  Sample sample = measure_units(here.progress(), time, summary);
  primary.stop();
  (void)primary_end.get();
  clients.reset();
  const backup::BackupEnd end = backup_end.get();
  if (end.failed) throw Error("the backup failed: " + end.reason);
  if (sample.summary.divergences > 0) throw Error("the backup diverged");
  return sample;
}

// Over the rounds.
struct Spread {
  double median = 0;
  double least = 0;
  double most = 0;
};

Spread spread_of(const std::vector<double>& values) {
  return {median(values), *std::ranges::min_element(values), *std::ranges::max_element(values)};
}

// Medians, of the runs by one commit rule at one epoch length.
struct Row {
  const Workload* workload;
  std::uint64_t epoch_length;
  primary::CommitRule rule;
  Spread normalized;  // time protected / time unprotected, of the runs right before and after
  double epochs_per_second;
  double commit_us_p50;
  double lag_p50;
  double log_bytes;   // in a second of guest time: of what takes an unprotected guest a second
  double copy_bytes;  // the same
};

// What is to be reached natively, by the rule on-output.
struct Target {
  const char* workload;
  std::uint64_t epoch_length;
  std::optional<double> most_normalized;
  std::optional<double> least_fewer_bytes;  // than copy sends
};
constexpr Target kTargets[] = {
    {"compute", 256'000, 1.25, 50.0},
    {"compute", 1'000'000, 1.10, 50.0},
    {"memory-writer", 256'000, std::nullopt, 50.0},
    {"memory-writer", 1'000'000, std::nullopt, 50.0},
};

struct Verdict {
  const Target* target;
  const char* what;
  double wanted;
  double measured;
  bool met;
};

std::vector<Verdict> judge(const std::vector<Row>& rows) {
  std::vector<Verdict> verdicts;
  for (const Target& target : kTargets) {
    for (const Row& row : rows) {
      if (row.workload->name != std::string_view(target.workload) || row.epoch_length != target.epoch_length ||
          row.rule != primary::CommitRule::kOnOutput) {
        continue;
      }
      if (const auto most = target.most_normalized) {
        verdicts.push_back({&target, "normalized, at most", *most, row.normalized.median, row.normalized.median <= *most});
      }
      if (const auto least = target.least_fewer_bytes) {
        const double fewer = row.copy_bytes / row.log_bytes;
        verdicts.push_back({&target, "times fewer bytes than copy, at least", *least, fewer, fewer >= *least});
      }
    }
  }
  return verdicts;
}

void print(const Verdict& verdict) {
  fmt::print("{:<14} {:>9} on-output: {} {:.2f}: {:.2f}, {}\n", verdict.target->workload, verdict.target->epoch_length,
             verdict.what, verdict.wanted, verdict.measured, verdict.met ? "met" : "NOT MET");
}

boost::json::object to_json(const Verdict& verdict) {
  return {{"workload", verdict.target->workload}, {"epoch_length", verdict.target->epoch_length}, {"what", verdict.what},
          {"wanted", verdict.wanted},             {"measured", verdict.measured},                 {"met", verdict.met}};
}

const char* name_of(primary::CommitRule rule) { return rule == primary::CommitRule::kOnOutput ? "on-output" : "every-epoch"; }

boost::json::object to_json(const Row& row) {
  return {{"workload", row.workload->name},
          {"epoch_length", row.epoch_length},
          {"commit", name_of(row.rule)},
          {"normalized", row.normalized.median},
          {"normalized_least", row.normalized.least},
          {"normalized_most", row.normalized.most},
          {"epochs_per_second", row.epochs_per_second},
          {"commit_latency_us_p50", row.commit_us_p50},
          {"lag_epochs_p50", row.lag_p50},
          {"log_bytes_per_guest_second", row.log_bytes},
          {"copy_bytes_per_guest_second", row.copy_bytes}};
}

void print(const Row& row) {
  fmt::print("{:<14} {:>9} {:<12} {:>10.2f} {:>6.2f}-{:<6.2f} {:>9.0f} {:>10.0f} {:>5.0f} {:>11.0f} {:>11.0f} {:>8.1f}\n",
             row.workload->name, row.epoch_length, name_of(row.rule), row.normalized.median, row.normalized.least,
             row.normalized.most, row.epochs_per_second, row.commit_us_p50, row.lag_p50, row.log_bytes / 1024,
             row.copy_bytes / 1024, row.copy_bytes / row.log_bytes);
  std::fflush(stdout);
}

struct Sampling {
  std::chrono::milliseconds run_time;  // at least
  std::size_t rounds;                  // runs for each row
};

struct ProtectedRun {
  Sample sample;
  double unprotected;  // units per second, in the mean of the runs right before and after
};

Row row_of(const Workload& workload, std::uint64_t length, primary::CommitRule rule, const std::vector<ProtectedRun>& runs,
           double copied_per_unit) {
  const auto all = [&runs](auto value) {
    std::vector<double> values;
    for (const ProtectedRun& run : runs) values.push_back(static_cast<double>(value(run)));
    return values;
  };
  return {&workload,
          length,
          rule,
          spread_of(all([](const ProtectedRun& run) { return run.unprotected / run.sample.units_per_second; })),
          median(all([](const ProtectedRun& run) { return run.sample.epochs_per_second; })),
          median(all([](const ProtectedRun& run) { return run.sample.summary.commit_latency_us.p50; })),
          median(all([](const ProtectedRun& run) { return run.sample.summary.lag_epochs.p50; })),
          median(all([](const ProtectedRun& run) { return run.sample.bytes_per_unit * run.unprotected; })),
          median(all([&](const ProtectedRun& run) { return copied_per_unit * run.unprotected; }))};
}

// Protected and unprotected runs follow each other, since the host is not the same from second to second: each protected one
// is compared with its neighbours.
std::vector<Row> measure_length(const Workload& workload, std::uint64_t length, const Sampling& sampling, double copied_per_unit) {
  const auto unprotected_rate = [&] { return measure_unprotected(workload, sampling.run_time).units_per_second; };
  std::map<primary::CommitRule, std::vector<ProtectedRun>> runs;
  double before = unprotected_rate();
  for (std::size_t round = 0; round < sampling.rounds; ++round) {
    for (const auto rule : {primary::CommitRule::kOnOutput, primary::CommitRule::kEveryEpoch}) {
      primary::PrimaryOptions options;
      options.strategy = protocol::Strategy::kLockstep;
      options.lockstep.epoch_length = {length};
      options.lockstep.commit_rule = rule;
      const Sample sample = measure_protected(workload, sampling.run_time, options);
      const double after = unprotected_rate();
      runs[rule].push_back({sample, (before + after) / 2});
      before = after;
    }
  }
  std::vector<Row> rows;
  for (const auto& [rule, of_rule] : runs) {
    rows.push_back(row_of(workload, length, rule, of_rule, copied_per_unit));
    print(rows.back());
  }
  return rows;
}

std::vector<Row> measure(const Workload& workload, const std::vector<std::uint64_t>& lengths, const Sampling& sampling) {
  primary::PrimaryOptions copy;
  copy.lockstep.epoch_length = kUnprotectedLength;
  const double copied_per_unit = measure_protected(workload, sampling.run_time, copy).bytes_per_unit;
  std::vector<Row> rows;
  for (const std::uint64_t length : lengths) {
    std::ranges::move(measure_length(workload, length, sampling, copied_per_unit), std::back_inserter(rows));
  }
  return rows;
}

int run(int argc, char** argv) {
  CLI::App app("How much longer guests take in lockstep than unprotected, on /dev/kvm, and what goes over the link.");
  std::string json_path;
  std::uint64_t time_ms = 1000;
  std::size_t rounds = 5;
  std::vector<std::uint64_t> lengths{1'000, 4'000, 16'000, 64'000, 256'000, 1'000'000};
  std::vector<std::string> names;
  app.add_option("--json", json_path, "also write the table to this file");
  app.add_option("--time-ms", time_ms, "at least so long is measured in each run")
      ->check(CLI::PositiveNumber)->capture_default_str();
  app.add_option("--rounds", rounds, "runs for each row, between unprotected ones")
      ->check(CLI::PositiveNumber)->capture_default_str();
  app.add_option("--epoch-length", lengths, "rows for each");
  app.add_option("--workload", names, "only these: compute, memory-writer, disk-write, disk-read, network");
  CLI11_PARSE(app, argc, argv);
  spdlog::set_level(spdlog::level::err);
  if (const std::string why = testing::why_no_kvm(); !why.empty()) {
    fmt::print("lockstep_bench: skipped: {}\n", why);
    return kSkippedExit;
  }
  protocol::session::initialize_crypto();

  fmt::print("Medians of {} runs, for normalized with the range. normalized: time in lockstep / time unprotected (epoch length\n"
             "{}). Times in us; KiB in a second of guest time, of everything on the link in lockstep and under copy (its default\n"
             "epochs), and how many times less.\n",
             rounds, kUnprotectedLength.sites);
  fmt::print("{:<14} {:>9} {:<12} {:>10} {:>13} {:>9} {:>10} {:>5} {:>11} {:>11} {:>8}\n", "workload", "epoch", "commit",
             "normalized", "range", "epochs/s", "commit p50", "lag", "log KiB/s", "copy KiB/s", "less");
  std::vector<Row> rows;
  for (const Workload& workload : kWorkloads) {
    if (!names.empty() && std::find(names.begin(), names.end(), workload.name) == names.end()) continue;
    for (const Row& row : measure(workload, lengths, {std::chrono::milliseconds(time_ms), rounds})) rows.push_back(row);
  }
  const std::vector<Verdict> verdicts = judge(rows);
  fmt::print("\nTargets:\n");
  for (const Verdict& verdict : verdicts) print(verdict);
  if (!json_path.empty()) {
    std::ofstream file(json_path, std::ios::trunc);
    boost::json::array table, targets;
    for (const Row& row : rows) table.push_back(to_json(row));
    for (const Verdict& verdict : verdicts) targets.push_back(to_json(verdict));
    file << boost::json::serialize(boost::json::object{{"rows", table}, {"targets", targets}}) << "\n";
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
    fmt::print(stderr, "lockstep_bench: {}\n", error.what());
    return 1;
  }
}
