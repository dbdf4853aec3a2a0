// pollux backup: holds an image of a primary's machine, and becomes it when the primary dies: a primary itself then, which
// another backup may join.
#include "backup/backup.h"

#include <spdlog/spdlog.h>

#include <CLI/CLI.hpp>
#include <memory>
#include <optional>

#include "base/error.h"
#include "cli/arbiter_options.h"
#include "cli/config_file.h"
#include "cli/commands.h"
#include "cli/exit_code.h"
#include "cli/host_options.h"
#include "cli/protection_options.h"
#include "cli/signals.h"
#include "cli/stop_switch.h"
#include "vmm/gates/pass_through.h"

namespace pollux::cli {
namespace {

struct BackupCommand {
  HostOptions host;
  ArbiterOptions arbiter;
  ProtectionOptions protection;
  std::string listen;
  std::string join;
  std::string key;
  std::string peer_key;
  std::uint64_t timeout_ms = 1000;
  std::uint64_t heartbeat_ms = 100;
  std::string staging = "4G";
  std::string primary_staging = "256M";
  std::string timeline;
};

backup::BackupOptions to_options(const BackupCommand& command, const protocol::Claim& claim) {
  if (command.listen.empty() && command.join.empty()) throw UsageError("expected --listen, --join or both");
  check_timing(command.heartbeat_ms, command.timeout_ms);
  check_writable("--timeline", command.timeline);
  backup::BackupOptions options;
  const auto address = [](const char* option, const std::string& text) {
    return for_option(option, [&] { return protocol::parse_address(text); });
  };
  if (!command.listen.empty()) options.listen = address("--listen", command.listen);
  if (!command.join.empty()) options.join = address("--join", command.join);
  options.primary_key = for_option("--peer-key", [&] { return protocol::session::load_public_key(command.peer_key); });
  options.silence_timeout = std::chrono::milliseconds(command.timeout_ms);
  options.heartbeat_interval = std::chrono::milliseconds(command.heartbeat_ms);
  options.staging_bytes = parse_size("--staging", command.staging);
  options.claim = claim;
  return options;
}

// What it is as a primary, should it be promoted.
primary::PrimaryOptions to_primary_options(const BackupCommand& command, const protocol::Claim& claim) {
  primary::PrimaryOptions options;
  options.silence_timeout = std::chrono::milliseconds(command.timeout_ms);
  options.heartbeat_interval = std::chrono::milliseconds(command.heartbeat_ms);
  options.claim = claim;
  options.staging_bytes = parse_size("--primary-staging", command.primary_staging);
  if (options.staging_bytes < kSmallestBuffer) throw UsageError("--primary-staging: expected at least 4M");
  command.protection.apply_to(options);
  return options;
}

// Leads the machine in the term it won, until the machine ends.
vmm::MachineExit lead(backup::Promotion promotion, primary::PrimaryOptions options, const std::string& timeline_path,
                      const protocol::session::SecretKey& key, vmm::Backends& backends, StopSwitch& stops) {
  vmm::PassThroughInput input;
  std::optional<backup::PromotedOutput> output;
  std::optional<backup::FailoverReport> report;
  options.listener = promotion.listener;
  options.succession = primary::Succession{promotion.vm, promotion.term, promotion.timeline.epoch};
  options.on_turn = [&](const vmm::Machine& machine) { report->look(promotion.timeline, machine); };
  primary::Primary primary(std::move(options));
  const StopSwitch::Use stop(stops, [&] { primary.stop(); });
  const vmm::MachineExit exit = primary.run(key, backends, [&](vmm::OutputGate& gate) {
    output.emplace(gate);
    report.emplace(*output, backends.nic_count() > 0, timeline_path);
    return promotion.restore(backends, input, *output);
  });
  report->finish(promotion.timeline);
  return exit;
}

int run_backup(const BackupCommand& command) {
  protocol::session::initialize_crypto();
  vmm::check_host();
  SignalWatcher signals;
  const auto key = for_option("--key", [&] { return protocol::session::load_secret_key(command.key); });
  const protocol::Claim claim = command.arbiter.open();
  primary::PrimaryOptions as_primary = to_primary_options(command, claim);
  StopSwitch stops;
  const std::unique_ptr<vmm::Backends> backends = command.host.open([&] { stops.stop(); });
  backup::Backup backup(to_options(command, claim), key);
  signals.on_signal([&] { stops.stop(); });
  if (!command.listen.empty()) {
    spdlog::info("listening on {} (port {}){}", command.listen, backup.port(),
                 command.join.empty() ? "" : ", for the time after a promotion");
  }
  backup::BackupEnd end;
  {
    const StopSwitch::Use stop(stops, [&] { backup.stop(); });
    end = backup.run(*backends);
  }
  if (end.promotion) {
    const vmm::MachineExit exit =
        lead(std::move(*end.promotion), std::move(as_primary), command.timeline, key, *backends, stops);
    signals.disarm();
    return exit_code_of(exit, signals.received());
  }
  signals.disarm();
  if (end.failed) {
    spdlog::error("{}", end.reason);
    return kFailureExit;
  }
  spdlog::info("{}", end.reason);
  return signals.received() == 0 ? 0 : 128 + signals.received();
}

}  // namespace

void add_backup(CLI::App& app, int& exit_code) {
  auto* command = app.add_subcommand("backup", "hold an image of a primary's guest, and become it when the primary dies");
  auto options = std::make_shared<BackupCommand>();
  command->add_option("--listen", options->listen, "HOST:PORT to wait for the primary on; once promoted, for a backup to join")
      ->type_name("ADDR");
  command->add_option("--join", options->join, "HOST:PORT of a primary that runs unprotected: connects there until it can")
      ->type_name("ADDR");
  command->add_option("--key", options->key, "this host's secret key (pollux keygen)")->required()->type_name("FILE");
  command->add_option("--peer-key", options->peer_key, "the primary's public key")->required()->type_name("FILE");
  command->add_option("--timeout-ms", options->timeout_ms, "a primary that is silent for so long is lost")
      ->capture_default_str();
  command->add_option("--heartbeat-ms", options->heartbeat_ms, "interval of heartbeats")->capture_default_str();
  command->add_option("--staging", options->staging, "memory for records that are not yet applied; more than the guest's RAM")->capture_default_str();
  command->add_option("--primary-staging", options->primary_staging, "once promoted: memory for page copies on their way to a backup; taken when one joins")
      ->capture_default_str();
  command->add_option("--timeline", options->timeline, "write the failover's timeline to this JSON file")->type_name("FILE");
  options->protection.add_to(*command);
  options->arbiter.add_to(*command);
  // Usually nobody sits at a backup's terminal, and its log lines would garble a guest's console.
  options->host.add_to(*command, "none");
  add_config_option(*command);
  command->footer("The machine comes from the primary: give only this host's disks and TAPs, in the primary's order.");
  command->callback([options, &exit_code] { exit_code = run_backup(*options); });
}

}  // namespace pollux::cli
