// Waiting for what other threads or the guest bring about.
#pragma once

#include <chrono>
#include <functional>
#include <thread>

namespace pollux::testing {

// Polls until `condition` holds; false when it did not within the time, far longer than anything takes that goes well.
inline bool eventually(const std::function<bool()>& condition, std::chrono::seconds limit = std::chrono::seconds(60)) {
  const auto deadline = std::chrono::steady_clock::now() + limit;
  while (!condition()) {
    if (std::chrono::steady_clock::now() > deadline) return false;
    std::this_thread::sleep_for(std::chrono::microseconds(200));
  }
  return true;
}

}  // namespace pollux::testing
