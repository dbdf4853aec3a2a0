// Lines over a Unix stream socket, with bounds on their length and on the time they take.
#pragma once

#include <chrono>
#include <optional>
#include <string>

#include "base/fd.h"

namespace pollux::control {

// Mode 0600. A socket file that nobody listens on is replaced; throws UsageError when somebody does, when the path is
// something else, or is too long.
[[nodiscard]] Fd listen_unix(const std::string& path);
// Throws Error.
[[nodiscard]] Fd connect_unix(const std::string& path);

// One end of a connection. Each function waits until it can go on, at most so long, or until `wake` is readable.
class LineSocket {
 public:
  enum class Event { kLine, kEnd, kTooLong, kTimeout, kWoken };

  // `wake`: an eventfd, or -1. Lines longer than `limit` (with their newline) are not taken.
  LineSocket(Fd socket, int wake, std::size_t limit);

  // The next line, without its newline, in line().
  [[nodiscard]] Event receive(std::optional<std::chrono::milliseconds> timeout);
  [[nodiscard]] const std::string& line() const { return line_; }
  // False: not taken in time, or the other side is gone.
  [[nodiscard]] bool send(const std::string& line, std::chrono::milliseconds timeout);
  // Waits for the end of the other side or `wake`. False: neither within the time.
  [[nodiscard]] bool ended_within(std::chrono::milliseconds time);

 private:
  enum class Ready { kYes, kTimeout, kWoken };
  [[nodiscard]] Ready wait_for(short events, std::optional<std::chrono::steady_clock::time_point> deadline) const;

  Fd socket_;
  int wake_;
  std::size_t limit_;
  std::string received_;
  std::string line_;
};

}  // namespace pollux::control
