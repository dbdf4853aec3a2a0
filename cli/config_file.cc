#include "cli/config_file.h"

#include <toml++/toml.h>

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
constexpr std::size_t kMaxBytes = 1 << 20;

[[noreturn]] void refuse(const std::string& path, const std::string& why) {
  throw UsageError(kOption + " " + path + ": " + why);
}

[[noreturn]] void refuse_line(const std::string& path, const toml::source_region& where, const std::string& why) {
  refuse(path, "line " + std::to_string(where.begin.line) + ": " + why);
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

toml::table read_table(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) refuse(path, std::strerror(errno));
  std::string text(kMaxBytes + 1, '\0');
  file.read(text.data(), static_cast<std::streamsize>(text.size()));
  if (file.bad()) refuse(path, "cannot be read");
  text.resize(static_cast<std::size_t>(file.gcount()));
  if (text.size() > kMaxBytes) refuse(path, "larger than 1 MiB");
  try {
    return toml::parse(text, path);
  } catch (const toml::parse_error& error) {
    refuse_line(path, error.source(), std::string(error.description()));
  }
}

// What may stand for one option in the file.
class Entry {
 public:
  Entry(const std::string& path, const CLI::App& command, const toml::key& key, const toml::node& value)
      : path_(path), key_(key.str()), value_(value) {
    if (value.is_table() || value.is_array_of_tables()) refuse_line(path, key.source(), key_ + ": the file has no tables");
    if (option() == kOption) refuse_line(path, key.source(), "a file cannot name another");
    option_ = option() == "--help" ? nullptr : command.get_option_no_throw(option());
    if (option_ == nullptr) {
      refuse_line(path, key.source(), "unknown key '" + key_ + "': the keys are the options of pollux " + command.get_name());
    }
  }

  [[nodiscard]] std::string option() const { return "--" + key_; }

  // As if they had been typed.
  void append_to(std::vector<std::string>& arguments) const {
    const toml::array* values = value_.as_array();
    if (values == nullptr) return append(value_, arguments);
    if (option_->get_items_expected_max() <= 1) refuse_value(value_, "takes one value, not an array");
    for (const toml::node& value : *values) append(value, arguments);
  }

 private:
  [[noreturn]] void refuse_value(const toml::node& value, const std::string& why) const {
    refuse_line(path_, value.source(), key_ + ": " + why);
  }

  void append(const toml::node& value, std::vector<std::string>& arguments) const {
    const bool flag = option_->get_items_expected_max() == 0;
    if (flag) {
      if (!value.is_boolean()) refuse_value(value, "expected true or false");
      if (*value.value<bool>()) arguments.push_back(option());
      return;
    }
    const std::string text = text_of(value);
    if (!text.empty()) {
      arguments.push_back(option() + "=" + text);
    } else {  // with a "=" and nothing behind it the parser would take the next argument for the value
      arguments.insert(arguments.end(), {option(), text});
    }
  }

  [[nodiscard]] std::string text_of(const toml::node& value) const {
    if (value.is_integer()) return std::to_string(*value.value<std::int64_t>());
    if (!value.is_string()) refuse_value(value, "expected a string or an integer");
    std::string text = *value.value<std::string>();
    if (text.find('\0') != std::string::npos) refuse_value(value, "contains a zero byte");
    return text;
  }

  const std::string& path_;
  std::string key_;
  const toml::node& value_;
  const CLI::Option* option_ = nullptr;
};

}  // namespace

// CLI11's own set_config() reads a file for the outermost command only, and its TOML is an approximation: it takes a '#' in
// a string for the start of a comment.
void add_config_option(CLI::App& command) {
  command.add_option(kOption, "read options from this TOML file")->type_name("FILE");
}

std::vector<std::string> with_config_file(const CLI::App& command, std::vector<std::string> arguments) {
  const auto path = config_path(arguments);
  if (!path) return arguments;
  const std::vector<std::string> typed = arguments;
  const toml::table table = read_table(*path);
  for (const auto& [key, value] : table) {
    const Entry entry(*path, command, key, value);
    const bool overridden = std::any_of(
        typed.begin(), typed.end(), [&](const std::string& argument) { return is_option(argument, entry.option()); });
    if (!overridden) entry.append_to(arguments);
  }
  return arguments;
}

}  // namespace pollux::cli
