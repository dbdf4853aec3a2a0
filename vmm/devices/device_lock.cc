#include "vmm/devices/device_lock.h"

#include "base/error.h"

namespace pollux::vmm {

void DeviceLock::lock() {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [this] { return !held_ && !frozen_; });
  held_ = true;
}

void DeviceLock::unlock() {
  {
    const std::lock_guard lock(mutex_);
    held_ = false;
  }
  changed_.notify_all();
}

void DeviceLock::freeze() {
  std::unique_lock lock(mutex_);
  POLLUX_ASSERT(!frozen_);
  frozen_ = true;  // before waiting: from here on nobody else gets the lock
  changed_.wait(lock, [this] { return !held_; });
}

void DeviceLock::thaw() {
  {
    const std::lock_guard lock(mutex_);
    frozen_ = false;
  }
  changed_.notify_all();
}

bool DeviceLock::frozen() const {
  const std::lock_guard lock(mutex_);
  return frozen_;
}

}  // namespace pollux::vmm
