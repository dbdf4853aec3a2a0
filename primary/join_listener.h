// Waits for backups that want to join, on a thread of its own.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <thread>

#include "protocol/link/link.h"

namespace pollux::primary {

class JoinListener {
 public:
  // `joined` gets each authenticated link, on this listener's thread.
  JoinListener(std::shared_ptr<protocol::Listener> listener, std::function<void(std::unique_ptr<protocol::Link>)> joined);
  // Stops listening; `joined` is called no more.
  ~JoinListener();

 private:
  void run();

  std::shared_ptr<protocol::Listener> listener_;
  const std::function<void(std::unique_ptr<protocol::Link>)> joined_;
  std::atomic<bool> stopping_ = false;
  std::thread thread_;
};

}  // namespace pollux::primary
