#include "cli/config_file.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <optional>

#include "base/error.h"

namespace pollux::cli {
namespace {

const std::string kOption = "--config";

[[noreturn]] void refuse(const std::string& path, const std::string& why) {
  throw UsageError(kOption + " " + path + ": " + why);
}

bool is_option(const std::string& argument, const std::string& option) {
  return argument == option || argument.starts_with(option + "=");
}

std::optional<std::string> config_path(const std::vector<std::string>& arguments) {
  const auto found = std::find_if(arguments.begin(), arguments.end(),
                                  [](const std::string& argument) { return is_option(argument, kOption); });
  if (found == arguments.end()) return std::nullopt;
  if (*found != kOption) return found->substr(kOption.size() + 1);
  if (found + 1 == arguments.end()) return std::nullopt;  // the parser says what is missing
  return *(found + 1);
}

std::vector<CLI::ConfigItem> read_items(const std::string& path) {
  std::ifstream file(path);
  if (!file) refuse(path, std::strerror(errno));
  try {
    std::vector<CLI::ConfigItem> items = CLI::ConfigTOML().from_config(file);
    if (file.bad()) refuse(path, "cannot be read");
    return items;
  } catch (const CLI::Error& error) {
    refuse(path, error.what());
  }
}

}  // namespace

// CLI11's own set_config() reads a file for the outermost command only.
void add_config_option(CLI::App& command) {
  command.add_option(kOption, "read options from this TOML file")->type_name("FILE");
}

std::vector<std::string> with_config_file(const CLI::App& command, std::vector<std::string> arguments) {
  const auto path = config_path(arguments);
  if (!path) return arguments;
  const std::vector<std::string> typed = arguments;
  for (const CLI::ConfigItem& item : read_items(*path)) {
    if (!item.parents.empty()) refuse(*path, "[" + item.parents.front() + "]: the file has no sections");
    const std::string option = "--" + item.name;
    if (option == kOption) refuse(*path, "a file cannot name another");
    if (command.get_option_no_throw(option) == nullptr) {
      refuse(*path, "unknown key '" + item.name + "': the keys are the options of pollux " + command.get_name());
    }
    const bool overridden = std::any_of(
        typed.begin(), typed.end(), [&](const std::string& argument) { return is_option(argument, option); });
    if (overridden) continue;
    for (const std::string& input : item.inputs) arguments.push_back(option + "=" + input);
  }
  return arguments;
}

}  // namespace pollux::cli
