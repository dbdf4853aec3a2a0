// pollux backup: holds an image of a primary's machine, and becomes it when the primary dies.
#include "backup/backup.h"

#include <spdlog/spdlog.h>

#include <CLI/CLI.hpp>
#include <memory>

#include "base/error.h"
#include "cli/arbiter_options.h"
#include "cli/config_file.h"
#include "cli/commands.h"
#include "cli/exit_code.h"
#include "cli/host_options.h"
#include "cli/signals.h"

namespace pollux::cli {
namespace {

struct BackupCommand {
  HostOptions host;
  ArbiterOptions arbiter;
  std::string listen;
  std::string key;
  std::string peer_key;
  std::uint64_t timeout_ms = 1000;
  std::uint64_t heartbeat_ms = 100;
  std::string staging = "4G";
  std::string timeline;
};

backup::BackupOptions to_options(const BackupCommand& command) {
  check_timing(command.heartbeat_ms, command.timeout_ms);
  check_writable("--timeline", command.timeline);
  backup::BackupOptions options;
  options.listen = for_option("--listen", [&] { return protocol::parse_address(command.listen); });
  options.primary_key = for_option("--peer-key", [&] { return protocol::session::load_public_key(command.peer_key); });
  options.silence_timeout = std::chrono::milliseconds(command.timeout_ms);
  options.heartbeat_interval = std::chrono::milliseconds(command.heartbeat_ms);
  options.staging_bytes = parse_size("--staging", command.staging);
  options.timeline_path = command.timeline;
  options.claim = command.arbiter.open();
  return options;
}

int run_backup(const BackupCommand& command) {
  protocol::session::initialize_crypto();
  vmm::check_host();
  SignalWatcher signals;
  const auto key = for_option("--key", [&] { return protocol::session::load_secret_key(command.key); });
  backup::Backup* running = nullptr;
  const std::unique_ptr<vmm::Backends> backends = command.host.open([&] { running->stop(); });
  backup::Backup backup(to_options(command), key);
  running = &backup;
  signals.on_signal([&] { backup.stop(); });
  spdlog::info("listening on {} (port {})", command.listen, backup.port());
  const backup::BackupEnd end = backup.run(*backends);
  signals.disarm();
  if (end.machine) return exit_code_of(*end.machine, signals.received());
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
  command->add_option("--listen", options->listen, "HOST:PORT to wait for the primary on")->required()->type_name("ADDR");
  command->add_option("--key", options->key, "this host's secret key (pollux keygen)")->required()->type_name("FILE");
  command->add_option("--peer-key", options->peer_key, "the primary's public key")->required()->type_name("FILE");
  command->add_option("--timeout-ms", options->timeout_ms, "a primary that is silent for so long is lost")
      ->capture_default_str();
  command->add_option("--heartbeat-ms", options->heartbeat_ms, "interval of heartbeats")->capture_default_str();
  command->add_option("--staging", options->staging, "memory for records that are not yet applied; more than the guest's RAM")->capture_default_str();
  command->add_option("--timeline", options->timeline, "write the failover's timeline to this JSON file")->type_name("FILE");
  options->arbiter.add_to(*command);
  // Usually nobody sits at a backup's terminal, and its log lines would garble a guest's console.
  options->host.add_to(*command, "none");
  add_config_option(*command);
  command->footer("The machine comes from the primary: give only this host's disks and TAPs, in the primary's order.");
  command->callback([options, &exit_code] { exit_code = run_backup(*options); });
}

}  // namespace pollux::cli
