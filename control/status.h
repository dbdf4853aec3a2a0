// What a replica tells its operator, in words of its own: whoever runs one fills this in.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace pollux::control {

struct BackupStatus {
  std::uint32_t id = 0;
  std::string address;                        // as this side sees it
  std::string state;                          // as the protocol names it: syncing, protecting, lost, ...
  std::optional<std::uint64_t> acknowledged;  // epoch; nothing before the end of its full sync
  std::uint64_t unacknowledged_epochs = 0;    // closed here
  bool operator==(const BackupStatus&) const = default;
};

struct Status {
  std::string role;        // primary, backup, or none: between the two
  std::string state;       // of a backup: waiting, joining, syncing, protecting, claiming; of a primary: leading, starting or ended
  std::string vm = {};     // empty: not known yet
  std::uint64_t term = 0;  // 0: not known yet
  std::uint64_t epoch = 0;      // the last closed one; of a backup the last whole one
  std::uint64_t committed = 0;  // of a backup the last one it acknowledged
  std::string protection = {};  // of a primary: syncing, protected, unprotected, ended
  std::string guest = {};       // running, paused, handing over, waits for the arbiter, passive (at a backup)
  bool claiming = false;        // the arbiter is asked for the next term
  std::vector<BackupStatus> backups = {};
  bool operator==(const Status&) const = default;
};

// A JSON object on one line.
[[nodiscard]] std::string to_json(const Status& status);
// For people, several lines. Throws Error when it is no such object.
[[nodiscard]] std::string status_text(const std::string& json);
// For people, any flat JSON object: a line for each key.
[[nodiscard]] std::string object_text(const std::string& json);

// What a watcher wants to be told at once: everything but the epochs that come and go all the time.
[[nodiscard]] Status without_progress(Status status);

// Answers: one line each, without its newline.
[[nodiscard]] std::string ok_answer(const std::string& key, const std::string& json_value);
[[nodiscard]] std::string done_answer(const std::string& what_was_done);
[[nodiscard]] std::string error_answer(const std::string& why);

// What came as an answer.
struct Answer {
  bool ok = false;
  std::string text;  // what was done, or the error; empty: there is a `value`
  std::string value = {};  // JSON, of status and stats
};
// Throws Error when it is none.
[[nodiscard]] Answer parse_answer(const std::string& line);

}  // namespace pollux::control
