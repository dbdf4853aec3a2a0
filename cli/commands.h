// The subcommands. Each adds itself to the application; its callback stores the exit code when it ran.
#pragma once

namespace CLI {
class App;
}

namespace pollux::cli {

void add_vm(CLI::App& app, int& exit_code);
void add_primary(CLI::App& app, int& exit_code);
void add_backup(CLI::App& app, int& exit_code);
void add_chaos(CLI::App& app, int& exit_code);
void add_keygen(CLI::App& app, int& exit_code);
void add_ctl(CLI::App& app, int& exit_code);

}  // namespace pollux::cli
