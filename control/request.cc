#include "control/request.h"

#include <array>
#include <boost/json.hpp>
#include <utility>

#include "base/error.h"

namespace pollux::control {
namespace {

constexpr std::array<std::pair<Command, std::string_view>, 8> kNames = {{
    {Command::kStatus, "status"},
    {Command::kStats, "stats"},
    {Command::kPause, "pause"},
    {Command::kResume, "resume"},
    {Command::kStop, "stop"},
    {Command::kAddBackup, "add-backup"},
    {Command::kDropBackup, "drop-backup"},
    {Command::kSwitchover, "switchover"},
}};

Command command_of(std::string_view name) {
  std::string known;
  for (const auto& [command, its_name] : kNames) {
    if (its_name == name) return command;
    known += (known.empty() ? "" : ", ") + std::string(its_name);
  }
  throw Error("no such command; there are " + known);
}

std::string_view text_of(const boost::json::value& value, const char* key) {
  const auto* text = value.if_string();
  if (text == nullptr) throw Error(std::string(key) + ": expected a string");
  return *text;
}

std::uint32_t backup_of(const boost::json::value& value, const char* key) {
  boost::json::error_code error;
  const auto number = value.to_number<std::uint32_t>(error);
  if (error || !(value.is_int64() || value.is_uint64())) throw Error(std::string(key) + ": expected a backup's number");
  return number;
}

}  // namespace

std::string_view name_of(Command command) {
  for (const auto& [one, name] : kNames) {
    if (one == command) return name;
  }
  POLLUX_ASSERT(!"a command without a name");
  return {};
}

std::string encode(const Request& request) {
  boost::json::object object;
  object["command"] = name_of(request.command);
  if (request.watch) object["watch"] = true;
  if (request.command == Command::kAddBackup) object["address"] = request.address;
  if (request.backup) object[request.command == Command::kSwitchover ? "to" : "id"] = *request.backup;
  return boost::json::serialize(object);
}

Request parse_request(std::string_view line) {
  boost::json::parse_options options;
  options.max_depth = 4;
  boost::json::error_code error;
  const boost::json::value value = boost::json::parse(line, error, {}, options);
  if (error) throw Error("not a JSON object: " + error.message());
  const auto* object = value.if_object();
  if (object == nullptr) throw Error("not a JSON object");
  const auto* command = object->if_contains("command");
  if (command == nullptr) throw Error("command: missing");
  Request request{.command = command_of(text_of(*command, "command"))};
  const bool watchable = request.command == Command::kStatus || request.command == Command::kStats;
  for (const auto& [key, given] : *object) {
    if (key == "command") continue;
    if (key == "watch" && watchable) {
      if (!given.is_bool()) throw Error("watch: expected true or false");
      request.watch = given.get_bool();
    } else if (key == "address" && request.command == Command::kAddBackup) {
      request.address = text_of(given, "address");
    } else if (key == "id" && request.command == Command::kDropBackup) {
      request.backup = backup_of(given, "id");
    } else if (key == "to" && request.command == Command::kSwitchover) {
      request.backup = backup_of(given, "to");
    } else {
      throw Error(std::string(name_of(request.command)) + " takes no such key as one that was given");
    }
  }
  if (request.command == Command::kAddBackup && request.address.empty()) throw Error("address: missing");
  if (request.command == Command::kDropBackup && !request.backup) throw Error("id: missing");
  return request;
}

}  // namespace pollux::control
