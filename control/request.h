// What an operator may ask of a running `pollux primary` or `pollux backup`: one JSON object on one line.
//
//   {"command": "status"}                         also "stats"; with "watch": true a line at every change, or a second
//   {"command": "pause"}                          also "resume", "stop"
//   {"command": "add-backup", "address": "HOST:PORT"}
//   {"command": "drop-backup", "id": 1}
//   {"command": "switchover", "to": 1}            "to" may be left out when one backup protects
//
// The answer is one JSON object on one line: {"ok": true, ...} or {"ok": false, "error": "..."}.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace pollux::control {

// Of a request or an answer, with its newline.
inline constexpr std::size_t kMaxRequestBytes = 4 << 10;
inline constexpr std::size_t kMaxAnswerBytes = 64 << 10;

enum class Command { kStatus, kStats, kPause, kResume, kStop, kAddBackup, kDropBackup, kSwitchover };

struct Request {
  Command command = Command::kStatus;
  bool watch = false;                       // kStatus, kStats
  std::string address = {};                 // kAddBackup
  std::optional<std::uint32_t> backup = {};  // kDropBackup, kSwitchover
  bool operator==(const Request&) const = default;
};

[[nodiscard]] std::string_view name_of(Command command);
// One line, without its newline.
[[nodiscard]] std::string encode(const Request& request);
// Throws Error saying what is wrong with it, whatever the bytes are.
[[nodiscard]] Request parse_request(std::string_view line);

}  // namespace pollux::control
