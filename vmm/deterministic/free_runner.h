// A thread that runs one epoch after the other, until it is parked.
#pragma once

#include <condition_variable>
#include <functional>
#include <mutex>
#include <thread>

namespace pollux::vmm {

// Used by one controlling thread. Parked at first.
class FreeRunner {
 public:
  // `run_epoch` is called on the runner's thread; false: there is nothing more to run, until unpark() is called again.
  explicit FreeRunner(std::function<bool()> run_epoch) : run_epoch_(std::move(run_epoch)) {}
  // Must be parked.
  ~FreeRunner();

  void unpark();
  // No epoch is begun from here on.
  void request_park();
  // Until none is under way.
  void wait_parked();

 private:
  void main();

  const std::function<bool()> run_epoch_;
  std::mutex mutex_;
  std::condition_variable changed_;
  bool run_ = false;
  bool parked_ = true;
  bool stopping_ = false;
  std::thread thread_;  // from the first unpark() on
};

}  // namespace pollux::vmm
