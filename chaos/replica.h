// One `pollux primary` or `pollux backup` as a process: its log, and what it says of itself through its control socket.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "chaos/child_process.h"

namespace pollux::chaos {

// What it last said.
struct ReplicaStatus {
  std::string role;  // primary, backup; empty: nothing said yet
  std::string state;
  std::string protection;  // of a primary
  std::uint64_t term = 0;
  std::uint64_t epoch = 0;
  std::uint64_t committed = 0;

  [[nodiscard]] bool leads() const { return role == "primary"; }
  [[nodiscard]] bool is_protected() const { return leads() && protection == "protected"; }
  bool operator==(const ReplicaStatus&) const = default;
};

// Throws Error when it is no status.
[[nodiscard]] ReplicaStatus parse_replica_status(const std::string& json);

class ReplicaProcess {
 public:
  // `words` include --control `control_path`. `told` is called on a thread of this object's with each status as it comes.
  ReplicaProcess(const std::vector<std::string>& words, const std::string& log_path, const std::string& control_path,
                 std::function<void(const ReplicaStatus&)> told);
  // Kills it.
  ~ReplicaProcess();
  ReplicaProcess(const ReplicaProcess&) = delete;
  ReplicaProcess& operator=(const ReplicaProcess&) = delete;

  [[nodiscard]] ChildProcess& process() { return process_; }
  [[nodiscard]] ReplicaStatus status() const;
  // When that came; before the start when nothing has.
  [[nodiscard]] std::chrono::steady_clock::time_point status_time() const;
  // Everything it has logged; `text` occurs in it.
  [[nodiscard]] std::string log() const;
  [[nodiscard]] bool logged(const std::string& text) const { return log().find(text) != std::string::npos; }
  // The terms it won at the arbiter, by its log, ascending.
  [[nodiscard]] std::vector<std::uint64_t> terms() const;
  [[nodiscard]] const std::string& log_path() const { return log_path_; }
  [[nodiscard]] const std::string& control_path() const { return control_path_; }

 private:
  void watch();

  const std::string log_path_;
  const std::string control_path_;
  const std::function<void(const ReplicaStatus&)> told_;
  mutable std::mutex mutex_;
  ReplicaStatus status_;
  std::chrono::steady_clock::time_point status_time_{};
  std::atomic<bool> ended_ = false;
  ChildProcess process_;
  std::thread watcher_;
};

// The terms that such a log says were won.
[[nodiscard]] std::vector<std::uint64_t> terms_in_log(const std::string& log);

}  // namespace pollux::chaos
