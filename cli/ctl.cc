// pollux ctl: looks at a running primary or backup, and commands it, through its control socket.
#include <CLI/CLI.hpp>
#include <cstdio>
#include <memory>

#include "base/error.h"
#include "cli/commands.h"
#include "cli/exit_code.h"
#include "control/client.h"

namespace pollux::cli {
namespace {

constexpr const char* kFooter = R"(
what each does:
  status             who leads, in which term and epoch, each backup's state and how far it is behind
  stats              what protection costs: pauses, dirty pages, bytes, commit latency
  pause, resume      the guest stands still; what it emitted is committed, backups stay in sync. A replica that takes over
                     after a failure meanwhile lets the guest run.
  stop               ends the machine in an orderly way, as SIGTERM does; a backup only ends itself
  add-backup ADDR    connects to a `pollux backup --listen` there and brings it in sync while the guest runs
  drop-backup ID     gives a backup up, once the arbiter makes sure that it can never lead; the last one leaves the
                     machine unprotected
  switchover         the guest goes on at a backup from the end of the epoch it is in; the process here ends with exit
                     code 5, or follows as a backup with --rejoin

  a$ pollux ctl --socket /run/pollux.sock status --watch
  a$ pollux ctl --socket /run/pollux.sock switchover --to 0

exit codes: 0 done, 1 refused or nobody there (standard error says why), 2 a wrong option.
With --json the answer is one JSON object a line, as it came: {"ok": true, ...} or {"ok": false, "error": "..."}.)";

struct CtlCommand {
  std::string socket;
  bool json = false;
  control::Request request;
  std::uint32_t backup = 0;
};

// What is wrong goes to standard error, in one line, whatever the format.
bool show(const CtlCommand& command, const std::string& line) {
  const control::Answer answer = control::parse_answer(line);
  if (command.json) {
    std::printf("%s\n", line.c_str());
  } else if (!answer.ok) {
    throw Error(answer.text);
  } else if (answer.value.empty()) {
    std::printf("%s\n", answer.text.c_str());
  } else {
    const bool status = command.request.command == control::Command::kStatus;
    std::fputs((status ? control::status_text(answer.value) : control::object_text(answer.value)).c_str(), stdout);
    if (command.request.watch) std::fputc('\n', stdout);
  }
  return std::fflush(stdout) == 0 && answer.ok;
}

int run_ctl(const CtlCommand& command) {
  bool ok = true;
  control::ask(command.socket, command.request, [&](const std::string& line) { return ok = show(command, line); });
  return ok ? 0 : kFailureExit;
}

}  // namespace

void add_ctl(CLI::App& app, int& exit_code) {
  auto* command = app.add_subcommand("ctl", "look at a running primary or backup, and command it");
  auto options = std::make_shared<CtlCommand>();
  command->add_option("--socket", options->socket, "the other process's --control")->required()->type_name("PATH");
  command->add_flag("--json", options->json, "the answer as JSON");
  command->require_subcommand(1);
  command->fallthrough();
  command->footer(kFooter);
  const auto add = [&](control::Command what, const char* help) {
    auto* one = command->add_subcommand(std::string(name_of(what)), help);
    one->callback([options, what, one, &exit_code] {
      options->request.command = what;
      const auto* to = one->get_option_no_throw("--to");
      if (what == control::Command::kDropBackup || (to != nullptr && to->count() > 0)) options->request.backup = options->backup;
      exit_code = run_ctl(*options);
    });
    return one;
  };
  const char* watch = "again at every change, and every second";
  add(control::Command::kStatus, "who leads, and who protects")->add_flag("--watch", options->request.watch, watch);
  add(control::Command::kStats, "what protection costs")->add_flag("--watch", options->request.watch, watch);
  add(control::Command::kPause, "let the guest stand still");
  add(control::Command::kResume, "let it run again");
  add(control::Command::kStop, "end the machine");
  add(control::Command::kAddBackup, "bring a backup in that waits")
      ->add_option("address", options->request.address, "HOST:PORT of a pollux backup --listen")
      ->required();
  add(control::Command::kDropBackup, "give a backup up")
      ->add_option("id", options->backup, "its number, as status shows it")
      ->required();
  add(control::Command::kSwitchover, "let a backup lead")
      ->add_option("--to", options->backup, "its number; may be left out when there is one");
}

}  // namespace pollux::cli
