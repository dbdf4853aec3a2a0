// The lock of one device, which the machine can also hold between calls and across threads: frozen.
#pragma once

#include <condition_variable>
#include <mutex>

namespace pollux::vmm {

// BasicLockable. freeze() goes before every waiting lock(), so a busy guest cannot put off a pause.
class DeviceLock {
 public:
  // Waits while another thread holds the lock or the device is frozen.
  void lock();
  void unlock();

  // Returns when no thread holds the lock; none gets it until thaw(), which any thread may call.
  void freeze();
  void thaw();
  [[nodiscard]] bool frozen() const;

 private:
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  bool held_ = false;
  bool frozen_ = false;
};

}  // namespace pollux::vmm
