// pollux vm: one guest on one host, unprotected.
#include <CLI/CLI.hpp>
#include <atomic>
#include <memory>

#include "cli/commands.h"
#include "cli/exit_code.h"
#include "cli/machine_options.h"
#include "cli/signals.h"
#include "vmm/gates/pass_through.h"

namespace pollux::cli {
namespace {

int run_vm(const MachineOptions& options) {
  options.check();
  SignalWatcher signals;
  // Set once the machine is there; a console may ask for the end before.
  std::atomic<vmm::Machine*> machine = nullptr;
  std::atomic<bool> leave = false;
  const auto stop = [&] {
    leave = true;
    if (vmm::Machine* running = machine) running->request_exit();
  };
  const std::unique_ptr<vmm::Backends> backends = options.host().open(stop);
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

}  // namespace

void add_vm(CLI::App& app, int& exit_code) {
  auto* command = app.add_subcommand("vm", "run a guest on this host, unprotected");
  auto options = std::make_shared<MachineOptions>();
  options->add_to(*command);
  command->callback([options, &exit_code] { exit_code = run_vm(*options); });
}

}  // namespace pollux::cli
