#include "chaos/child_process.h"

#include <fcntl.h>
#include <linux/capability.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <fstream>

#include "base/error.h"
#include "base/fd.h"

namespace pollux::chaos {
namespace {

constexpr int kNotExecuted = 127;

// After fork() in a process with threads: only what is async-signal-safe.
[[noreturn]] void become(char* const* words, int log, pid_t parent) {
  ::setpgid(0, 0);  // Ctrl-C is for who started it
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (::getppid() != parent) ::_exit(kNotExecuted);
  ::prctl(PR_CAPBSET_DROP, CAP_DAC_OVERRIDE);
  ::prctl(PR_CAPBSET_DROP, CAP_DAC_READ_SEARCH);
  ::dup2(log, STDOUT_FILENO);
  ::dup2(log, STDERR_FILENO);
  sigset_t none;
  sigemptyset(&none);
  ::sigprocmask(SIG_SETMASK, &none, nullptr);
  ::execv(words[0], words);
  ::_exit(kNotExecuted);
}

int code_of(int status) { return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status); }

}  // namespace

ChildProcess::ChildProcess(const std::vector<std::string>& words, const std::string& log_path) {
  const Fd log(::open(log_path.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644));
  if (!log) throw errno_error("open", log_path);
  std::vector<char*> arguments;
  for (const std::string& word : words) arguments.push_back(const_cast<char*>(word.c_str()));
  arguments.push_back(nullptr);
  const pid_t parent = ::getpid();
  pid_ = ::fork();
  if (pid_ < 0) throw errno_error("start", words.front());
  if (pid_ == 0) become(arguments.data(), log.get(), parent);
}

ChildProcess::~ChildProcess() { kill_and_wait(); }

void ChildProcess::send_signal(int signal) const {
  if (!exit_code_) ::kill(pid_, signal);
}

bool ChildProcess::stop() {
  send_signal(SIGSTOP);
  int status = 0;
  while (!exit_code_ && !WIFSTOPPED(status)) {
    if (::waitpid(pid_, &status, WUNTRACED) != pid_) {
      POLLUX_ASSERT(errno == EINTR);
      status = 0;
    } else if (!WIFSTOPPED(status)) {
      exit_code_ = code_of(status);
    }
  }
  return !exit_code_;
}

void ChildProcess::refuse_memory(bool refused) const {
  if (exit_code_) return;
  rlimit limit{RLIM_INFINITY, RLIM_INFINITY};
  std::uint64_t pages = 0;
  std::ifstream("/proc/" + std::to_string(pid_) + "/statm") >> pages;
  if (refused) limit.rlim_cur = pages * static_cast<std::uint64_t>(::sysconf(_SC_PAGESIZE));
  (void)::prlimit(pid_, RLIMIT_AS, &limit, nullptr);  // it may end at this moment
}

std::optional<int> ChildProcess::exit_code() {
  int status = 0;
  if (!exit_code_ && ::waitpid(pid_, &status, WNOHANG) == pid_) exit_code_ = code_of(status);
  return exit_code_;
}

int ChildProcess::kill_and_wait() {
  if (exit_code_) return *exit_code_;
  ::kill(pid_, SIGKILL);
  int status = 0;
  while (::waitpid(pid_, &status, 0) != pid_) POLLUX_ASSERT(errno == EINTR);
  exit_code_ = code_of(status);
  return *exit_code_;
}

}  // namespace pollux::chaos
