// SIGINT and SIGTERM as an orderly end.
#pragma once

#include <atomic>
#include <functional>
#include <thread>

namespace pollux::cli {

// Create before any other thread: it blocks both signals in all of them and waits for them on a thread of its own.
class SignalWatcher {
 public:
  SignalWatcher();
  ~SignalWatcher();

  // `stop` is called on the watcher's thread at the first signal (at once, if it came already). A second signal ends
  // the process without ceremony. Once only.
  void on_signal(std::function<void()> stop);
  // No later signal calls `stop`: what it refers to may go. Waits for a call under way.
  void disarm();
  // The signal that came, or 0.
  [[nodiscard]] int received() const { return received_; }

 private:
  std::atomic<int> received_ = 0;
  std::atomic<bool> leaving_ = false;
  std::thread thread_;
};

}  // namespace pollux::cli
