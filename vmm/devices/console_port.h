// The host's end of a guest console: standard input and output (raw when a terminal), a file, or nothing.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "base/bytes.h"

namespace pollux::vmm {

class ConsolePort {
 public:
  virtual ~ConsolePort() = default;
  // The guest runs from here on: input is its own. Called before the first poll_fd().
  virtual void start() {}
  // Readable when input waits; -1 when there is never any.
  [[nodiscard]] virtual int poll_fd() const = 0;
  // Waiting input; empty at end of file (then poll_fd() becomes -1) or when it was all an escape sequence.
  [[nodiscard]] virtual Bytes read() = 0;
  // Best effort: when a console cannot be written, or its reader stalls, that is logged once and bytes are lost. Such a
  // reader is waited for once, 100 ms, until it reads again.
  virtual void write(ByteView bytes) = 0;
};

// `spec`: "stdio", "file=PATH" (created, truncated; a FIFO needs its reader) or "none". Throws UsageError naming the spec.
// stdio puts a terminal into raw mode from start() until destruction; Ctrl-A x calls `on_leave`, Ctrl-A a sends Ctrl-A.
std::unique_ptr<ConsolePort> open_console(const std::string& spec, std::function<void()> on_leave);

}  // namespace pollux::vmm
