// Captures the key-value server's responses as they leave the replicas' TAPs, all through one socket and so in one order.
#pragma once

#include <cstdint>
#include <map>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "base/fd.h"
#include "chaos/answer_frames.h"
#include "chaos/stopwatch.h"

namespace pollux::chaos {

class FrameCapture {
 public:
  static constexpr std::size_t kMaxFrames = 8'000'000;

  // Host n is the one with taps[n]. Throws Error.
  FrameCapture(const std::vector<std::string>& taps, std::uint16_t server_port, const Stopwatch& watch);
  ~FrameCapture();
  FrameCapture(const FrameCapture&) = delete;
  FrameCapture& operator=(const FrameCapture&) = delete;

  // Ends; what has left the TAPs until now is in it.
  void stop();
  [[nodiscard]] std::vector<AnswerFrame> frames() const;
  // The first answer of this host after that moment; nothing: none yet.
  [[nodiscard]] std::optional<Moment> first_answer(std::size_t host, Moment after) const;
  // Frames that the kernel or this object had no room for: then the capture proves nothing.
  [[nodiscard]] std::uint64_t lost() const;

 private:
  void run();
  void take(const char* frame, std::size_t size, int interface, Moment at);

  const Stopwatch& watch_;
  std::map<int, std::size_t> hosts_;  // by the interface's index
  Fd socket_;
  Fd stop_;
  mutable std::mutex mutex_;  // guards the two below
  std::vector<AnswerFrame> frames_;
  std::uint64_t lost_ = 0;
  std::thread thread_;
};

}  // namespace pollux::chaos
