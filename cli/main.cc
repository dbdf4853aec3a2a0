// pollux: the one command. What went wrong is said in one line on standard error.
#include <spdlog/sinks/stdout_color_sinks.h>
#include <spdlog/spdlog.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <string>
#include <vector>

#include "base/error.h"
#include "cli/commands.h"
#include "cli/config_file.h"
#include "cli/exit_code.h"
#include "cli/fail_stop.h"

namespace {

constexpr const char* kFooter = R"(
exit codes:
  0   the guest powered off, or the command did what it was asked
  1   the host failed: KVM, a disk, a lost peer
  2   an option, a file or the configuration is wrong: standard error names it
  3   the guest reset itself (pollux does not start it again)
  4   the guest crashed: triple fault or a KVM error
  5   the machine was handed over to another host (pollux ctl switchover), and --rejoin was not given
  6   pollux vm --replay: an epoch was not as recorded
  7   pollux vm --replay: the log was cut off: every whole epoch of it was as recorded
  130 ended by SIGINT (Ctrl-C)   143 ended by SIGTERM

a guest in one line:
  pollux vm --kernel vmlinuz --initrd initrd.img --cmdline console=ttyS0 --memory 512M --disk root.raw

the same guest on two hosts, as one machine:
  a$ pollux keygen a.key          b$ pollux keygen b.key     (exchange a.key.pub and b.key.pub)
  b$ pollux backup --listen 0.0.0.0:7700 --key b.key --peer-key a.key.pub --arbiter etcd:http://c:2379
       --disk root.raw --net tap=tap0
  a$ pollux primary --backup b:7700 --key a.key --peer-key b.key.pub --arbiter etcd:http://c:2379
       --kernel ... --disk root.raw --net tap=tap0

with --control PATH on either of them, it can be looked at and commanded:
  a$ pollux ctl --socket PATH status        (see pollux ctl --help)

Options may also stand in a file: --config FILE.toml, with the same names.)";

// The subcommand that is called, which is the first argument that is neither an option nor an option's value; null when
// there is none.
const CLI::App* called_command(const CLI::App& app, const std::vector<std::string>& arguments) {
  for (std::size_t i = 0; i < arguments.size(); ++i) {
    if (arguments[i].starts_with("-")) {
      if (arguments[i] == "--log-level") ++i;  // its value
      continue;
    }
    std::string known;
    for (const CLI::App* command : app.get_subcommands([](const CLI::App*) { return true; })) {
      if (command->get_name() == arguments[i]) return command;
      known += (known.empty() ? "" : ", ") + command->get_name();
    }
    throw pollux::UsageError(arguments[i] + ": no such command; there are " + known);
  }
  return nullptr;
}

// The exception's first line; the rest (usage hints) would break "one line".
int complain(const std::string& text, int code) {
  const std::string line = text.substr(0, text.find('\n'));
  std::fprintf(stderr, "pollux: %s\n", line.c_str());
  return code;
}

}  // namespace

int main(int argc, char** argv) {
  using namespace pollux;
  cli::fail_stop_without_resources();
  spdlog::set_default_logger(spdlog::stderr_color_mt("pollux"));
  spdlog::set_pattern("%H:%M:%S.%e %^%l%$ %v");

  CLI::App app("Pollux runs a virtual machine on two or more hosts as one logical machine that outlives any of them.");
  app.set_version_flag("--version", "pollux " POLLUX_VERSION);
  app.footer(kFooter);
  app.name("pollux");
  app.require_subcommand(1);
  std::string log_level = "info";
  app.add_option("--log-level", log_level, "how much is logged")
      ->check(CLI::IsMember({"trace", "debug", "info", "warning", "error"}))
      ->capture_default_str();
  app.parse_complete_callback([&] { spdlog::set_level(spdlog::level::from_str(log_level)); });
  int exit_code = 0;
  cli::add_vm(app, exit_code);
  cli::add_primary(app, exit_code);
  cli::add_backup(app, exit_code);
  cli::add_keygen(app, exit_code);
  cli::add_ctl(app, exit_code);
  cli::add_chaos(app, exit_code);
  try {
    std::vector<std::string> arguments(argv + std::min(argc, 1), argv + argc);
    if (const CLI::App* command = called_command(app, arguments)) {
      arguments = cli::with_config_file(*command, std::move(arguments));
    }
    std::reverse(arguments.begin(), arguments.end());  // as parse() wants a vector
    app.parse(std::move(arguments));
    return exit_code;
  } catch (const CLI::ParseError& error) {
    if (error.get_exit_code() == 0) return app.exit(error);
    return complain(error.what(), cli::kUsageExit);
  } catch (const UsageError& error) {
    return complain(error.what(), cli::kUsageExit);
  } catch (const std::exception& error) {
    return complain(error.what(), cli::kFailureExit);
  }
}
