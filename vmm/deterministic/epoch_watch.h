// Finds a guest that does not come to the end of its epoch: it goes around its counter, or a fault of its memory led it
// astray.
//
// What counts is not how long ago the epoch began but the processor time that the thread with the vCPU had for it, the
// guest's included. A process that was stopped, or a host with too much to do, gives none. A host that is itself a virtual
// machine and stood still may count that as processor time: so the time is taken in many short turns, and no turn counts
// more than its length.
//
// An epoch that ends within a turn or two, as all do that should, costs a look at an atomic for each exit.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <mutex>
#include <optional>
#include <thread>

namespace pollux::vmm {

class EpochWatch {
 public:
  // `kick` is called on a thread of the watch's, in each turn of an epoch that goes on: the vCPU's thread is to come
  // out of the guest and ask is_over().
  EpochWatch(std::chrono::milliseconds limit, std::function<void()> kick);

  // The rest is for the thread that runs the vCPU. An epoch's parts, from enter() to leave(), may be run by different ones.
  void begin_epoch();
  void enter();
  void leave();
  // After each exit: the epoch had all the time that an epoch may have.
  [[nodiscard]] bool is_over();

 private:
  static constexpr int kTurns = 50;  // within the limit

  void take_turns(const std::stop_token& stop);
  void count();

  const std::chrono::nanoseconds limit_;
  const std::chrono::nanoseconds turn_;
  const std::function<void()> kick_;
  std::chrono::nanoseconds had_{};
  std::optional<std::chrono::nanoseconds> counted_to_;  // of this thread's processor time
  bool begun_before_ = false;                           // the epoch has parts before this one
  std::uint64_t seen_ = 0;                              // turns
  std::atomic<std::uint64_t> turns_ = 0;
  std::atomic<std::uint64_t> epochs_ = 0;
  std::mutex mutex_;
  std::condition_variable_any stopped_;
  std::jthread thread_;  // from the first epoch on; last: uses the rest
};

}  // namespace pollux::vmm
