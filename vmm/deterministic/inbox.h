// What arrives from the host's backends while the guest runs, kept for the end of the epoch.
#pragma once

#include <chrono>
#include <condition_variable>
#include <deque>
#include <mutex>
#include <optional>
#include <vector>

#include "vmm/gates/input_gate.h"

namespace pollux::vmm {

class Inbox final : public ArrivalSink {
 public:
  // Bounds of what waits; frames and console input beyond them are lost.
  static constexpr std::size_t kMaxFrames = 512;
  static constexpr std::size_t kMaxConsoleBytes = std::size_t{64} * 1024;

  // From any thread.
  void deliver(Arrival arrival) override;
  // Ends a wait() under way or, if there is none, the next one.
  void wake();

  // What has arrived, as much as one epoch takes.
  [[nodiscard]] std::vector<Arrival> take();
  [[nodiscard]] bool empty() const;
  // Until something has arrived, wake() was called, or for this long.
  void wait(std::optional<std::chrono::nanoseconds> limit);

 private:
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<Arrival> arrivals_;
  std::size_t frames_ = 0;
  std::size_t console_bytes_ = 0;
  bool woken_ = false;
};

}  // namespace pollux::vmm
