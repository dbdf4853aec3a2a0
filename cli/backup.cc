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
#include "cli/machine_options.h"
#include "cli/memory_sizes.h"
#include "cli/protection_options.h"
#include "cli/replica_life.h"
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
  std::vector<std::string> peer_keys;
  std::uint64_t timeout_ms = 1000;
  std::uint64_t heartbeat_ms = 100;
  std::string staging;
  std::string primary_staging = "256M";
  std::string timeline;
  std::string on_divergence = "heal";
  std::optional<std::uint64_t> epoch_length;
  LifeOptions life;
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
  for (const std::string& path : command.peer_keys) {
    options.primary_keys.push_back(for_option("--peer-key", [&] { return protocol::session::load_public_key(path); }));
    if (!command.join.empty()) options.join.push_back({address("--join", command.join), options.primary_keys.back()});
  }
  options.silence_timeout = std::chrono::milliseconds(command.timeout_ms);
  options.heartbeat_interval = std::chrono::milliseconds(command.heartbeat_ms);
  options.staging_bytes = parse_backup_staging("--staging", command.staging);
  options.claim = claim;
  options.lockstep.on_divergence = on_divergence_of(command.on_divergence);
  options.lockstep.epoch_length = epoch_length_of(command.epoch_length);
  return options;
}

// What it is as a primary, should it be promoted.
primary::PrimaryOptions to_primary_options(const BackupCommand& command, const protocol::Claim& claim) {
  primary::PrimaryOptions options;
  options.silence_timeout = std::chrono::milliseconds(command.timeout_ms);
  options.heartbeat_interval = std::chrono::milliseconds(command.heartbeat_ms);
  options.claim = claim;
  options.staging_bytes = parse_memory_size("--primary-staging", command.primary_staging, kSmallestBuffer);
  command.protection.apply_to(options);
  options.lockstep.epoch_length = epoch_length_of(command.epoch_length);
  options.join_keys = to_options(command, claim).primary_keys;
  return options;
}

int run_backup(const BackupCommand& command) {
  protocol::session::initialize_crypto();
  SignalWatcher signals;
  const auto key = for_option("--key", [&] { return protocol::session::load_secret_key(command.key); });
  const protocol::Claim claim = command.arbiter.open();
  primary::PrimaryOptions as_primary = to_primary_options(command, claim);
  const backup::BackupOptions first = to_options(command, claim);
  command.host.check_writable_disks("a backup");
  vmm::check_host();
  StopSwitch stops;
  const std::unique_ptr<vmm::Backends> backends = command.host.open([&] { stops.stop(); });
  LifePlan plan{.as_primary = std::move(as_primary), .as_backup = first, .timeline_path = command.timeline};
  plan.as_backup.join = command.life.rejoin(first.primary_keys);
  control::Desk desk;
  const std::unique_ptr<control::Server> server = command.life.open_control(desk);
  ReplicaLife life(std::move(plan), key, *backends, stops, desk);
  auto backup = std::make_unique<backup::Backup>(first, key);
  signals.on_signal([&] { stops.stop(); });
  if (!command.listen.empty()) {
    spdlog::info("listening on {} (port {}){}", command.listen, backup->port(),
                 command.join.empty() ? "" : ", for the time after a promotion");
  }
  const int exit_code = life.follow(std::move(backup), signals);
  signals.disarm();
  return exit_code;
}

}  // namespace

void add_backup(CLI::App& app, int& exit_code) {
  auto* command = app.add_subcommand("backup", "hold an image of a primary's guest, and become it when the primary dies");
  auto options = std::make_shared<BackupCommand>();
  command->add_option("--listen", options->listen, "HOST:PORT to wait for the primary on; once promoted, for a backup to join")
      ->type_name("ADDR");
  command->add_option("--join", options->join, "HOST:PORT of a primary that runs: connects there until it can join")
      ->type_name("ADDR");
  command->add_option("--key", options->key, "this host's secret key (pollux keygen)")->required()->type_name("FILE");
  command->add_option("--peer-key", options->peer_keys, "the primary's public key; several: of each host that may lead or join")
      ->required()
      ->type_name("FILE");
  command->add_option("--timeout-ms", options->timeout_ms, "a primary that is silent for so long is lost")
      ->capture_default_str();
  command->add_option("--heartbeat-ms", options->heartbeat_ms, "interval of heartbeats")->capture_default_str();
  command->add_option("--staging", options->staging,
                      "memory for records that are not yet applied; more than the guest's RAM by 128M (4G, or what this host has)");
  command->add_option("--primary-staging", options->primary_staging, "once promoted: memory for page copies on their way to a backup; taken when one joins")
      ->capture_default_str();
  command->add_option("--on-divergence", options->on_divergence, "lockstep, when an epoch did not end as the primary's: heal: "
                                                                 "take the primary's state and go on; halt: end")
      ->capture_default_str();
  command->add_option("--epoch-length", options->epoch_length, "of a deterministic machine, once promoted (100000)")
      ->type_name("N");
  command->add_option("--timeline", options->timeline, "write the failover's timeline to this JSON file")->type_name("FILE");
  options->life.add_to(*command);
  options->protection.add_to(*command);
  options->arbiter.add_to(*command);
  // Usually nobody sits at a backup's terminal, and its log lines would garble a guest's console.
  options->host.add_to(*command, "none");
  add_config_option(*command);
  command->footer("The machine comes from the primary: give only this host's disks and TAPs, in the primary's order.");
  command->callback([options, &exit_code] { exit_code = run_backup(*options); });
}

}  // namespace pollux::cli
