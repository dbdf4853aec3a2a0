// pollux vm: one guest on one host, unprotected.
#include <CLI/CLI.hpp>
#include <atomic>
#include <memory>

#include "cli/commands.h"
#include "cli/exit_code.h"
#include "base/error.h"
#include "cli/machine_options.h"
#include "cli/record_replay.h"
#include "cli/signals.h"
#include "vmm/gates/pass_through.h"

namespace pollux::cli {
namespace {

struct VmCommand {
  MachineOptions machine;
  std::string record;
  std::string replay;
  bool snapshot = false;
};

// The log says what the machine is made of.
void check_replay(const CLI::App& app) {
  for (const char* option : {"--profile", "--epoch-length", "--initrd", "--cmdline", "--memory", "--cpus", "--net",
                             "--record", "--snapshot"}) {
    if (app.count(option) > 0) throw UsageError(std::string(option) + ": not with --replay");
  }
}

int run_unrecorded(const MachineOptions& options, DiskUse disks) {
  SignalWatcher signals;
  // Set once the machine is there; a console may ask for the end before.
  std::atomic<vmm::Machine*> machine = nullptr;
  std::atomic<bool> leave = false;
  const auto stop = [&] {
    leave = true;
    if (vmm::Machine* running = machine) running->request_exit();
  };
  const std::unique_ptr<vmm::Backends> backends = options.host().open(stop, disks);
  vmm::PassThroughInput input;
  vmm::PassThroughOutput output(*backends);
  const auto vm = options.boot(*backends, input, output);
  machine = vm.get();
  signals.on_signal(stop);
  if (leave) vm->request_exit();
  vm->resume();
  std::optional<vmm::MachineExit> exit;
  while (!exit) exit = vm->wait_for_exit(std::chrono::seconds(1));
  signals.disarm();
  vm->pause();
  machine = nullptr;
  for (std::uint32_t i = 0; i < backends->disk_count(); ++i) (void)backends->disk({i}).sync();
  return exit_code_of(*exit, signals.received());
}

int run_vm(const CLI::App& app, const VmCommand& command) {
  if (!command.replay.empty()) {
    check_replay(app);
    return replay_run(command.machine, command.replay);
  }
  command.machine.check();
  const DiskUse disks = command.snapshot ? DiskUse::kPrivate : DiskUse::kInPlace;
  if (command.record.empty()) return run_unrecorded(command.machine, disks);
  command.machine.check_deterministic("--record");
  return record_run(command.machine, command.record, disks);
}

}  // namespace

void add_vm(CLI::App& app, int& exit_code) {
  auto* command = app.add_subcommand("vm", "run a guest on this host, unprotected");
  auto options = std::make_shared<VmCommand>();
  command->add_option("--record", options->record, "write the run of a deterministic guest to this file")->type_name("LOG");
  command->add_option("--replay", options->replay, "repeat the run recorded in this file")->type_name("LOG");
  command->add_flag("--snapshot", options->snapshot, "disk images stay as they are: writes are kept in memory");
  options->machine.add_to(*command);
  command->callback([command, options, &exit_code] { exit_code = run_vm(*command, *options); });
}

}  // namespace pollux::cli
