// pollux chaos: harms real replicas by a seeded schedule, and judges what their clients saw.
#include <fmt/format.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <atomic>
#include <csignal>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <tuple>

#include "base/error.h"
#include "chaos/campaign.h"
#include "chaos/report.h"
#include "cli/commands.h"
#include "cli/exit_code.h"
#include "cli/host_options.h"

namespace pollux::cli {
namespace {

namespace fs = std::filesystem;

struct ChaosCommand {
  std::uint64_t seed = 1;
  std::uint64_t duration_s = 60;
  std::string faults = "all";
  std::string only;
  std::string report = "chaos-report";
  std::string guest;
  std::uint64_t clients = 4;
  std::uint64_t timeout_ms = 800;
  std::uint64_t epoch_ms = 20;
  std::uint64_t recovery_s = 60;
  std::string strategy = "copy";
  bool without_arbiter = false;
  bool list = false;
};

constexpr std::uint64_t kMaxSeconds = 86'400;

std::atomic<bool> interrupted = false;

std::string own_program() { return fs::read_symlink("/proc/self/exe").string(); }

std::string find_disk_faults() {
  const fs::path library = fs::path(own_program()).parent_path() / "../chaos/libpollux-disk-faults.so";
  if (!fs::exists(library)) throw UsageError(library.string() + ": no such file; it comes with a whole build");
  return fs::canonical(library).string();
}

// Beside a build's `pollux` lies the guest that it was built with.
std::string find_guest(const std::string& given) {
  const fs::path guest =
      given.empty() ? fs::path(own_program()).parent_path() / "../tests/guests/lockstep/kv_server" : fs::path(given);
  if (!fs::exists(guest)) throw UsageError("--guest " + guest.string() + ": no such file; give the kv_server guest's");
  return fs::canonical(guest).string();
}

chaos::ScheduleOptions schedule_of(const ChaosCommand& command) {
  chaos::ScheduleOptions schedule;
  if (command.duration_s < 1 || command.duration_s > kMaxSeconds) throw UsageError("--duration: expected 1 to 86400 seconds");
  schedule.seed = command.seed;
  schedule.duration = std::chrono::seconds(command.duration_s);
  schedule.kinds = for_option("--faults", [&] { return chaos::parse_fault_kinds(command.faults); });
  if (!command.only.empty()) {
    std::tie(schedule.first, schedule.last) = for_option("--only", [&] { return chaos::parse_fault_range(command.only); });
    if (chaos::make_schedule(schedule).empty()) throw UsageError("--only " + command.only + ": the schedule has fewer faults");
  }
  return schedule;
}

std::string reproduction(const ChaosCommand& command, const chaos::ScheduleOptions& schedule) {
  return fmt::format("pollux chaos run --seed {} --duration {} --faults {} --clients {} --timeout-ms {} --epoch-ms {} "
                     "--recovery-s {} --strategy {}{}{}",
                     command.seed, command.duration_s, chaos::to_text(schedule.kinds), command.clients, command.timeout_ms,
                     command.epoch_ms, command.recovery_s, command.strategy, command.only.empty() ? "" : " --only " + command.only,
                     command.without_arbiter ? " --without-arbiter" : "");
}

void say(const std::string& line) {
  std::printf("%s\n", line.c_str());
  std::fflush(stdout);
}

int run_chaos(const ChaosCommand& command) {
  const chaos::ScheduleOptions schedule = schedule_of(command);
  if (command.list) {
    for (const chaos::Fault& fault : chaos::make_schedule(schedule)) say(chaos::to_text(fault));
    return 0;
  }
  if (command.clients < 1 || command.clients > chaos::Workload::kMaxClients) throw UsageError("--clients: expected 1 to 16");
  check_timing(50, command.timeout_ms);
  if (command.epoch_ms < 1 || command.epoch_ms > 10'000) throw UsageError("--epoch-ms: expected 1 to 10000");
  if (command.recovery_s < 1 || command.recovery_s > kMaxSeconds) throw UsageError("--recovery-s: expected 1 to 86400 seconds");
  if (command.strategy != "copy" && command.strategy != "lockstep") throw UsageError("--strategy: expected copy or lockstep");
  const fs::path folder = fs::absolute(command.report) / "run";
  std::error_code error;
  fs::remove_all(folder, error);
  if (!fs::create_directories(folder, error) && error) throw UsageError("--report " + command.report + ": " + error.message());
  for (const int signal : {SIGINT, SIGTERM}) ::signal(signal, [](int) { interrupted = true; });
  ::signal(SIGPIPE, SIG_IGN);
  const std::string guest = find_guest(command.guest);
  chaos::enter_namespace();
  chaos::Campaign campaign({.schedule = schedule,
                            .folder = folder,
                            .pollux = own_program(),
                            .guest = guest,
                            .disk_faults = find_disk_faults(),
                            .clients = command.clients,
                            .timeout_ms = command.timeout_ms,
                            .epoch_ms = command.epoch_ms,
                            .strategy = command.strategy,
                            .recovery_limit = std::chrono::seconds(command.recovery_s),
                            .without_arbiter = command.without_arbiter,
                            .command = reproduction(command, schedule),
                            .progress = say,
                            .interrupted = [] { return interrupted.load(); }});
  const chaos::RunRecord record = campaign.run();
  chaos::write_report(record, command.report);
  say(chaos::to_text(record));
  say("report: " + (fs::path(command.report) / "report.html").string());
  return record.passed() ? 0 : kFailureExit;
}

}  // namespace

void add_chaos(CLI::App& app, int& exit_code) {
  auto* command = app.add_subcommand("chaos", "harm replicas of a key-value server and judge what its clients see");
  command->require_subcommand(1);
  auto* run = command->add_subcommand("run", "one campaign, in a network namespace of its own");
  auto options = std::make_shared<ChaosCommand>();
  run->add_option("--seed", options->seed, "the schedule of faults is made from it")->capture_default_str();
  run->add_option("--duration", options->duration_s, "of the schedule, in seconds; recovering takes its time on top")
      ->capture_default_str();
  run->add_option("--faults", options->faults,
                  "kill, pause, partition, one-way, latency, bandwidth, corrupt, disconnect, arbiter, kill-in-sync, switchover, "
                  "kill-in-switchover, disk-error, disk-full, disk-slow, memory, disk-read-error, kill-in-promotion; or all")
      ->capture_default_str()
      ->type_name("LIST");
  run->add_option("--only", options->only, "only these faults of the schedule, counted from 1")->type_name("N..M");
  run->add_option("--report", options->report, "folder for report.html, report.json and the replicas' logs")
      ->capture_default_str()
      ->type_name("DIR");
  run->add_option("--guest", options->guest, "the kv_server guest; that of this build when left out")->type_name("FILE");
  run->add_option("--clients", options->clients, "1 to 16")->capture_default_str();
  run->add_option("--timeout-ms", options->timeout_ms, "of the replicas")->capture_default_str();
  run->add_option("--epoch-ms", options->epoch_ms, "of the replicas")->capture_default_str();
  run->add_option("--strategy", options->strategy, "of the replicas: copy or lockstep")->capture_default_str();
  run->add_option("--recovery-s", options->recovery_s,
                  "a machine that does not answer, or is not protected, so long after a fault is a violation")
      ->capture_default_str();
  run->add_flag("--without-arbiter", options->without_arbiter,
                "replicas decide alone: a cut link makes two machines, and the checkers must find that");
  run->add_flag("--list", options->list, "only say which faults would strike when");
  run->callback([options, &exit_code] { exit_code = run_chaos(*options); });
}

}  // namespace pollux::cli
