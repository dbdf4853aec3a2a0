#include "control/status.h"

#include <fmt/format.h>

#include <boost/json.hpp>
#include <utility>

#include "base/error.h"

namespace pollux::control {
namespace {

boost::json::object parse_object(const std::string& json) {
  boost::json::error_code error;
  boost::json::value value = boost::json::parse(json, error);
  if (error || !value.is_object()) throw Error("the answer is not what this pollux understands");
  return std::move(value.get_object());
}

std::string text_of(const boost::json::object& object, const char* key) {
  const auto* value = object.if_contains(key);
  if (value == nullptr || value->is_null()) return "";
  if (const auto* text = value->if_string()) return std::string(*text);
  return boost::json::serialize(*value);
}

void add_line(std::string& text, const std::string& name, const std::string& value) {
  if (!value.empty()) text += fmt::format("{:<12}{}\n", name, value);
}

}  // namespace

std::string to_json(const Status& status) {
  boost::json::object object;
  object["role"] = status.role;
  object["state"] = status.state;
  if (!status.vm.empty()) object["vm"] = status.vm;
  if (status.term != 0) object["term"] = status.term;
  object["epoch"] = status.epoch;
  object["committed"] = status.committed;
  if (!status.protection.empty()) object["protection"] = status.protection;
  object["guest"] = status.guest;
  object["claiming"] = status.claiming;
  boost::json::array backups;
  for (const BackupStatus& backup : status.backups) {
    boost::json::object one;
    one["id"] = backup.id;
    one["address"] = backup.address;
    one["state"] = backup.state;
    if (backup.acknowledged) one["acknowledged"] = *backup.acknowledged;
    one["unacknowledged_epochs"] = backup.unacknowledged_epochs;
    backups.push_back(std::move(one));
  }
  if (status.role == "primary") object["backups"] = std::move(backups);
  return boost::json::serialize(object);
}

std::string status_text(const std::string& json) {
  const boost::json::object object = parse_object(json);
  std::string text;
  const std::string role = text_of(object, "role");
  add_line(text, "role", fmt::format("{}, {}", role, text_of(object, "state")));
  add_line(text, "vm", text_of(object, "vm"));
  add_line(text, "term", text_of(object, "term") + (text_of(object, "claiming") == "true" ? ", claiming the next" : ""));
  add_line(text, "epoch", fmt::format("{}, {} {}", text_of(object, "epoch"), role == "primary" ? "committed" : "acknowledged",
                                      text_of(object, "committed")));
  add_line(text, "protection", text_of(object, "protection"));
  add_line(text, "guest", text_of(object, "guest"));
  const auto* backups = object.if_contains("backups");
  if (backups == nullptr || !backups->is_array()) return text;
  if (backups->get_array().empty()) add_line(text, "backups", "none");
  for (const boost::json::value& value : backups->get_array()) {
    const auto* backup = value.if_object();
    if (backup == nullptr) throw Error("the answer is not what this pollux understands");
    const std::string acknowledged = text_of(*backup, "acknowledged");
    add_line(text, "backup " + text_of(*backup, "id"),
             fmt::format("{}, {}{}", text_of(*backup, "address"), text_of(*backup, "state"),
                         acknowledged.empty() ? ""
                                              : fmt::format(", acknowledged {} ({} unacknowledged)", acknowledged,
                                                            text_of(*backup, "unacknowledged_epochs"))));
  }
  return text;
}

std::string object_text(const std::string& json) {
  std::string text;
  for (const auto& [key, value] : parse_object(json)) {
    const auto* words = value.if_string();
    text += fmt::format("{:<24}{}\n", std::string(key), words != nullptr ? std::string(*words) : boost::json::serialize(value));
  }
  return text;
}

Status without_progress(Status status) {
  status.epoch = status.committed = 0;
  for (BackupStatus& backup : status.backups) {
    backup.acknowledged.reset();
    backup.unacknowledged_epochs = 0;
  }
  return status;
}

std::string ok_answer(const std::string& key, const std::string& json_value) {
  boost::json::object object;
  object["ok"] = true;
  object[key] = boost::json::parse(json_value);
  return boost::json::serialize(object);
}

std::string done_answer(const std::string& what_was_done) {
  return boost::json::serialize(boost::json::object{{"ok", true}, {"done", what_was_done}});
}

std::string error_answer(const std::string& why) {
  return boost::json::serialize(boost::json::object{{"ok", false}, {"error", why}});
}

Answer parse_answer(const std::string& line) {
  const boost::json::object object = parse_object(line);
  Answer answer;
  answer.ok = text_of(object, "ok") == "true";
  answer.text = text_of(object, answer.ok ? "done" : "error");
  for (const char* key : {"status", "stats"}) {
    if (const auto* value = object.if_contains(key)) answer.value = boost::json::serialize(*value);
  }
  if (answer.text.empty() && answer.value.empty()) throw Error("the answer is not what this pollux understands");
  return answer;
}

}  // namespace pollux::control
