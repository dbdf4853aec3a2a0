// Options from a TOML file: --config FILE.
#pragma once

#include <string>
#include <vector>

namespace CLI {
class App;
}

namespace pollux::cli {

// Lets `command` accept and explain the option; with_config_file() does the work.
void add_config_option(CLI::App& command);

// `arguments` of this (sub)command: where they hold --config FILE, the file's keys are appended as if they had been
// typed as long options ("memory = '1G'" as --memory=1G; an array as the option repeated; true as a flag), except those
// that were typed. So a wrong value is refused like a wrong option. Throws UsageError naming the file, the line and the
// key: what is no TOML, no option of the command, or of a type that it does not take.
std::vector<std::string> with_config_file(const CLI::App& command, std::vector<std::string> arguments);

}  // namespace pollux::cli
