#include "vmm/deterministic/free_runner.h"

#include "base/error.h"
#include "base/thread_name.h"
#include "vmm/kvm/kick_signal.h"

namespace pollux::vmm {

FreeRunner::~FreeRunner() {
  {
    const std::lock_guard lock(mutex_);
    POLLUX_ASSERT(parked_ && !run_);
    stopping_ = true;
  }
  changed_.notify_all();
  if (thread_.joinable()) thread_.join();
}

void FreeRunner::unpark() {
  const std::lock_guard lock(mutex_);
  POLLUX_ASSERT(parked_);
  run_ = true;
  parked_ = false;
  if (!thread_.joinable()) thread_ = std::thread([this] { main(); });
  changed_.notify_all();
}

void FreeRunner::request_park() {
  const std::lock_guard lock(mutex_);
  run_ = false;
  changed_.notify_all();
}

void FreeRunner::wait_parked() {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [this] { return parked_; });
}

void FreeRunner::main() {
  kvm::accept_only_kicks();
  name_this_thread("vcpu 0");
  std::unique_lock lock(mutex_);
  for (;;) {
    while (run_) {
      lock.unlock();
      const bool more = run_epoch_();
      lock.lock();
      if (!more) run_ = false;
    }
    parked_ = true;
    changed_.notify_all();
    // Not for run_: that may be over again before this thread noticed, and then whoever asked for it waits for a reply.
    changed_.wait(lock, [this] { return !parked_ || stopping_; });
    if (stopping_) return;
  }
}

}  // namespace pollux::vmm
