// pollux primary: a guest on this host, protected by backups on others, from the start or when they join.
#include "primary/primary.h"

#include <spdlog/spdlog.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <memory>

#include "base/error.h"
#include "cli/arbiter_options.h"
#include "cli/commands.h"
#include "cli/exit_code.h"
#include "cli/machine_options.h"
#include "cli/memory_sizes.h"
#include "cli/protection_options.h"
#include "cli/replica_life.h"
#include "cli/signals.h"
#include "cli/stop_switch.h"
#include "protocol/primary_replica.h"
#include "vmm/gates/pass_through.h"

namespace pollux::cli {
namespace {

struct PrimaryCommand {
  MachineOptions machine;
  ArbiterOptions arbiter;
  ProtectionOptions protection;
  std::vector<std::string> backups;
  std::string listen;
  std::string key;
  std::vector<std::string> peer_keys;
  std::uint64_t timeout_ms = 1000;
  std::uint64_t heartbeat_ms = 100;
  std::uint64_t connect_timeout_ms = 10'000;
  std::string staging = "256M";
  std::string backup_staging;
  std::string strategy = "copy";
  std::string on_divergence = "heal";
  LifeOptions life;
};

primary::PrimaryOptions to_options(const PrimaryCommand& command) {
  if (command.backups.size() > protocol::kMaxBackups) throw UsageError("--backup: expected at most 3 addresses");
  if (command.backups.empty() && command.listen.empty()) throw UsageError("expected --backup, --listen or both");
  if (!command.backups.empty() && command.peer_keys.size() != 1 && command.peer_keys.size() != command.backups.size()) {
    throw UsageError("--peer-key: expected one, or one for each --backup in the same order");
  }
  check_timing(command.heartbeat_ms, command.timeout_ms);
  if (command.connect_timeout_ms < 1 || command.connect_timeout_ms > kMaxMilliseconds) {
    throw UsageError("--connect-timeout-ms: expected 1 to " + std::to_string(kMaxMilliseconds));
  }
  primary::PrimaryOptions options;
  for (std::size_t i = 0; i < command.backups.size(); ++i) {
    const std::string& key = command.peer_keys[command.peer_keys.size() == 1 ? 0 : i];
    options.backups.push_back(
        {for_option("--backup", [&] { return protocol::parse_address(command.backups[i]); }),
         for_option("--peer-key", [&] { return protocol::session::load_public_key(key); })});
  }
  options.silence_timeout = std::chrono::milliseconds(command.timeout_ms);
  options.heartbeat_interval = std::chrono::milliseconds(command.heartbeat_ms);
  options.connect_timeout = std::chrono::milliseconds(command.connect_timeout_ms);
  options.staging_bytes = parse_memory_size("--staging", command.staging, kSmallestBuffer);
  command.protection.apply_to(options);
  if (command.strategy == "lockstep") {
    if (!command.machine.deterministic()) throw UsageError("--strategy lockstep: only with --profile deterministic");
    options.strategy = protocol::Strategy::kLockstep;
  } else if (command.strategy != "copy") {
    throw UsageError("--strategy " + command.strategy + ": expected copy or lockstep");
  }
  options.lockstep.epoch_length = command.machine.epoch_length();
  return options;
}

std::vector<protocol::session::PublicKey> peer_keys(const PrimaryCommand& command) {
  std::vector<protocol::session::PublicKey> keys;
  for (const std::string& path : command.peer_keys) {
    keys.push_back(for_option("--peer-key", [&] { return protocol::session::load_public_key(path); }));
  }
  return keys;
}

// Null: nobody may join.
std::shared_ptr<protocol::Listener> open_listener(const PrimaryCommand& command, const protocol::session::SecretKey& key) {
  if (command.listen.empty()) return nullptr;
  protocol::LinkOptions link;
  link.stall_timeout = std::chrono::milliseconds(command.timeout_ms);
  return for_option("--listen", [&] {
    return std::make_shared<protocol::Listener>(protocol::parse_address(command.listen), key, peer_keys(command), link);
  });
}

// What it is after another replica took the lead, and after it got it back.
LifePlan to_plan(const PrimaryCommand& command, const primary::PrimaryOptions& first) {
  LifePlan plan{.as_primary = first, .as_backup = {}, .timeline_path = {}};
  plan.as_primary.backups.clear();
  plan.as_primary.listener = nullptr;
  backup::BackupOptions& as_backup = plan.as_backup;
  as_backup.primary_keys = peer_keys(command);
  as_backup.join = command.life.rejoin(as_backup.primary_keys);
  if (!as_backup.join.empty()) command.machine.host().check_writable_disks("with --rejoin it");
  if (!command.listen.empty()) as_backup.listen = protocol::parse_address(command.listen);
  as_backup.silence_timeout = first.silence_timeout;
  as_backup.heartbeat_interval = first.heartbeat_interval;
  as_backup.staging_bytes = parse_backup_staging("--backup-staging", command.backup_staging);
  as_backup.lockstep = {.on_divergence = on_divergence_of(command.on_divergence),
                        .epoch_length = first.lockstep.epoch_length};
  as_backup.claim = first.claim;
  return plan;
}

int run_primary(const PrimaryCommand& command) {
  command.machine.check();
  protocol::session::initialize_crypto();
  SignalWatcher signals;
  primary::PrimaryOptions options = to_options(command);
  const auto key = for_option("--key", [&] { return protocol::session::load_secret_key(command.key); });
  options.claim = command.arbiter.open();
  options.join_keys = peer_keys(command);
  StopSwitch stops;
  const std::unique_ptr<vmm::Backends> backends = command.machine.host().open([&] { stops.stop(); });
  options.listener = open_listener(command, key);
  if (options.listener) spdlog::info("backups may join on {} (port {})", command.listen, options.listener->port());
  // A live line would garble a guest's console on the same terminal.
  options.status_line = ::isatty(STDERR_FILENO) && !command.machine.host().uses_terminal();
  control::Desk desk;
  const std::unique_ptr<control::Server> server = command.life.open_control(desk);
  ReplicaLife life(to_plan(command, options), key, *backends, stops, desk);
  signals.on_signal([&] { stops.stop(); });
  vmm::PassThroughInput input;
  const int exit_code = life.lead(
      std::move(options),
      [&](vmm::OutputGate& output) { return command.machine.boot(*backends, input, output); }, signals);
  signals.disarm();
  return exit_code;
}

}  // namespace

void add_primary(CLI::App& app, int& exit_code) {
  auto* command = app.add_subcommand("primary", "run a guest on this host, protected by backups on other hosts");
  auto options = std::make_shared<PrimaryCommand>();
  command->add_option("--backup", options->backups, "a backup's HOST:PORT; up to three")->type_name("ADDR");
  command->add_option("--listen", options->listen, "HOST:PORT where backups may join (pollux backup --join)")
      ->type_name("ADDR");
  command->add_option("--key", options->key, "this host's secret key (pollux keygen)")->required()->type_name("FILE");
  command->add_option("--peer-key", options->peer_keys, "the backups' public keys, in the order of --backup, or one for all")
      ->required()
      ->type_name("FILE");
  command->add_option("--strategy", options->strategy, "copy: the backup is sent what changes; lockstep: it executes the same "
                                                       "instructions (--profile deterministic)")
      ->capture_default_str();
  command->add_option("--timeout-ms", options->timeout_ms, "a backup that is silent for so long is dropped")
      ->capture_default_str();
  command->add_option("--heartbeat-ms", options->heartbeat_ms, "interval of heartbeats")->capture_default_str();
  command->add_option("--connect-timeout-ms", options->connect_timeout_ms, "how long to wait for the backups at the start")
      ->capture_default_str();
  command->add_option("--staging", options->staging, "memory for page copies on their way to the backups")
      ->capture_default_str();
  command->add_option("--backup-staging", options->backup_staging,
                      "once a backup (--rejoin): memory for records that are not yet applied; more than the guest's RAM by "
                      "128M (4G, or what this host has)");
  command->add_option("--on-divergence", options->on_divergence, "once a backup in lockstep (--rejoin): heal or halt")
      ->capture_default_str();
  options->life.add_to(*command);
  options->protection.add_to(*command);
  options->arbiter.add_to(*command);
  options->machine.add_to(*command);
  command->callback([options, &exit_code] { exit_code = run_primary(*options); });
}

}  // namespace pollux::cli
