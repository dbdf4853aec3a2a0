// What an orderly end means right now: a process that is a backup first and a primary later stops another thing.
#pragma once

#include <functional>
#include <mutex>
#include <utility>

namespace pollux::cli {

// Thread safe.
class StopSwitch {
 public:
  // As long as it lives, stop() calls its action. One at a time.
  class Use {
   public:
    Use(StopSwitch& stops, std::function<void()> action) : stops_(stops) { stops_.set(std::move(action)); }
    ~Use() { stops_.set({}); }
    Use(const Use&) = delete;
    Use& operator=(const Use&) = delete;

   private:
    StopSwitch& stops_;
  };

  // The action of a later Use is called at once.
  void stop() {
    const std::lock_guard lock(mutex_);
    stopped_ = true;
    if (action_) action_();
  }

  [[nodiscard]] bool stopped() {
    const std::lock_guard lock(mutex_);
    return stopped_;
  }

 private:
  void set(std::function<void()> action) {
    const std::lock_guard lock(mutex_);
    action_ = std::move(action);
    if (stopped_ && action_) action_();
  }

  std::mutex mutex_;
  std::function<void()> action_;
  bool stopped_ = false;
};

}  // namespace pollux::cli
