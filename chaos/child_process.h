// A process started here: its output goes to a file, and it dies with the thread that started it.
#pragma once

#include <sys/types.h>

#include <optional>
#include <string>
#include <vector>

namespace pollux::chaos {

class ChildProcess {
 public:
  // `words`: the program's path and its arguments. Appends to `log_path`. The child has no right to read or write what its
  // owner may not, even as root: so that a directory can be made unreachable to it. Throws Error.
  ChildProcess(const std::vector<std::string>& words, const std::string& log_path);
  // Kills it.
  ~ChildProcess();
  ChildProcess(const ChildProcess&) = delete;
  ChildProcess& operator=(const ChildProcess&) = delete;

  [[nodiscard]] pid_t pid() const { return pid_; }
  void send_signal(int signal) const;  // nothing happens when it has ended
  // SIGSTOP, and returns when every thread of it stands still: what it began to do in the kernel is done. False: it has ended.
  bool stop();
  // Whether its address space may grow no more.
  void refuse_memory(bool refused) const;
  // Its exit code, or 128 + the signal that ended it; nothing: it runs.
  [[nodiscard]] std::optional<int> exit_code();
  int kill_and_wait();

 private:
  pid_t pid_;
  std::optional<int> exit_code_;
};

}  // namespace pollux::chaos
