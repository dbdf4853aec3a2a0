#include "vmm/devices/console_port.h"

#include <fcntl.h>
#include <poll.h>
#include <spdlog/spdlog.h>
#include <termios.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <optional>

#include "base/error.h"
#include "base/fd.h"
#include "vmm/devices/terminal.h"

namespace pollux::vmm {
namespace {

constexpr std::size_t kReadChunk = 4096;
// A pipe that polls writable takes this much without blocking (POSIX PIPE_BUF is at least 512).
constexpr std::size_t kWriteChunk = 512;
// How long a stalled reader of our output may hold up the device that writes.
constexpr std::chrono::milliseconds kWritePatience{100};
constexpr std::byte kEscape{0x01};  // Ctrl-A
constexpr std::string_view kFilePrefix = "file=";

// Waits kWritePatience for a reader that has stopped, and from then on no more until it reads again: the guest's devices wait
// with whoever writes. What cannot be written is lost.
class PatientWriter {
 public:
  PatientWriter(int fd, std::string name) : fd_(fd), name_(std::move(name)) {}

  void write(ByteView bytes) {
    const std::lock_guard lock(mutex_);
    while (!bytes.empty()) {
      pollfd writable{fd_, POLLOUT, 0};
      const auto patience = stuck_ ? std::chrono::milliseconds(0) : kWritePatience;
      stuck_ = ::poll(&writable, 1, static_cast<int>(patience.count())) == 0;
      if (stuck_) return lose(ETIMEDOUT);
      const auto put = ::write(fd_, bytes.data(), std::min(bytes.size(), kWriteChunk));
      if (put < 0 && errno == EINTR) continue;
      stuck_ = put < 0 && errno == EAGAIN;
      if (put < 0) return lose(errno);
      if (lost_ != 0) log();
      bytes = bytes.subspan(static_cast<std::size_t>(put));
    }
  }

 private:
  // A terminal is told when it reads again: the log may go to the same one, and whoever logs would wait for it.
  void lose(int error_number) {
    lost_ = error_number;
    if (::isatty(fd_) == 0) log();
  }
  void log() {
    const int error_number = std::exchange(lost_, 0);
    if (!std::exchange(logged_, true)) spdlog::warn("console {}: output lost: {}", name_, std::strerror(error_number));
  }

  std::mutex mutex_;
  int fd_;
  std::string name_;
  bool stuck_ = false;  // its reader was waited for in vain
  int lost_ = 0;        // why something was lost that was not logged yet
  bool logged_ = false;
};

// Standard output for writing without ever blocking. A terminal that polls writable may still block a write that is larger
// than its room, so it is opened once more: O_NONBLOCK on the descriptor that we got would be seen by all who share it.
class StandardOutput {
 public:
  StandardOutput()
      : terminal_(::isatty(STDOUT_FILENO) != 0
                      ? ::open("/proc/self/fd/1", O_WRONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC)
                      : -1) {}
  [[nodiscard]] int fd() const { return terminal_ ? terminal_.get() : STDOUT_FILENO; }

 private:
  Fd terminal_;
};

// The terminal on standard input in raw mode, for as long as this lives or until the process calls exit().
class RawTerminal {
 public:
  RawTerminal() {
    if (!::isatty(STDIN_FILENO) || ::tcgetattr(STDIN_FILENO, &saved_settings()) != 0) return;
    termios raw = saved_settings();
    ::cfmakeraw(&raw);
    raw.c_oflag |= OPOST;  // our own log lines end in a bare newline
    if (::tcsetattr(STDIN_FILENO, TCSANOW, &raw) != 0) return;
    active() = true;
    static const int registered = std::atexit(restore);
    (void)registered;
  }
  ~RawTerminal() { restore(); }
  RawTerminal(const RawTerminal&) = delete;
  RawTerminal& operator=(const RawTerminal&) = delete;

  [[nodiscard]] static std::atomic<bool>& active() {
    static std::atomic<bool> active = false;
    return active;
  }
  static void restore() {
    if (active().exchange(false)) ::tcsetattr(STDIN_FILENO, TCSANOW, &saved_settings());
  }

 private:
  static termios& saved_settings() {
    static termios settings{};
    return settings;
  }
};

class StdioConsole final : public ConsolePort {
 public:
  explicit StdioConsole(std::function<void()> on_leave) : on_leave_(std::move(on_leave)) {}

  void start() override {
    if (!terminal_) terminal_.emplace();
  }
  [[nodiscard]] int poll_fd() const override { return at_end_ ? -1 : STDIN_FILENO; }

  [[nodiscard]] Bytes read() override {
    std::array<std::byte, kReadChunk> buffer;
    const auto got = ::read(STDIN_FILENO, buffer.data(), buffer.size());
    if (got < 0 && (errno == EINTR || errno == EAGAIN)) return {};
    if (got <= 0) {
      at_end_ = true;
      return {};
    }
    const ByteView typed(buffer.data(), static_cast<std::size_t>(got));
    // Bytes from a file or pipe are nobody's keystrokes.
    return RawTerminal::active() ? without_escapes(typed) : Bytes(typed.begin(), typed.end());
  }

  void write(ByteView bytes) override { writer_.write(bytes); }

 private:
  Bytes without_escapes(ByteView typed) {
    Bytes input;
    for (const std::byte key : typed) {
      if (std::exchange(escaped_, false)) {
        if (key == std::byte{'x'}) on_leave_();
        if (key == std::byte{'a'} || key == kEscape) input.push_back(kEscape);
      } else if (key == kEscape) {
        escaped_ = true;
      } else {
        input.push_back(key);
      }
    }
    return input;
  }

  std::function<void()> on_leave_;
  std::optional<RawTerminal> terminal_;
  StandardOutput output_;
  PatientWriter writer_{output_.fd(), "stdio"};
  bool escaped_ = false;  // the last key was Ctrl-A
  bool at_end_ = false;
};

class FileConsole final : public ConsolePort {
 public:
  FileConsole(Fd fd, const std::string& path) : fd_(std::move(fd)), writer_(fd_.get(), path) {}
  [[nodiscard]] int poll_fd() const override { return -1; }
  [[nodiscard]] Bytes read() override { return {}; }
  void write(ByteView bytes) override { writer_.write(bytes); }

 private:
  Fd fd_;
  PatientWriter writer_;
};

class NoConsole final : public ConsolePort {
 public:
  [[nodiscard]] int poll_fd() const override { return -1; }
  [[nodiscard]] Bytes read() override { return {}; }
  void write(ByteView) override {}
};

std::unique_ptr<ConsolePort> open_file(const std::string& spec) {
  const std::string path = spec.substr(kFilePrefix.size());
  if (path.empty()) throw UsageError("console '" + spec + "': a path must follow file=");
  // Without waiting for whoever shall read a FIFO, or for a terminal's line.
  Fd fd(::open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_NONBLOCK | O_NOCTTY | O_CLOEXEC, 0644));
  if (!fd && errno == ENXIO) throw UsageError("console '" + spec + "': a FIFO that nobody reads");
  if (!fd) throw UsageError("console '" + spec + "': " + std::strerror(errno));
  return std::make_unique<FileConsole>(std::move(fd), path);
}

}  // namespace

void restore_terminal() { RawTerminal::restore(); }

std::unique_ptr<ConsolePort> open_console(const std::string& spec, std::function<void()> on_leave) {
  if (spec == "stdio") return std::make_unique<StdioConsole>(std::move(on_leave));
  if (spec == "none") return std::make_unique<NoConsole>();
  if (spec.starts_with(kFilePrefix)) return open_file(spec);
  throw UsageError("console '" + spec + "': must be stdio, file=PATH or none");
}

}  // namespace pollux::vmm
