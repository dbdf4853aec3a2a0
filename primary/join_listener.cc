#include "primary/join_listener.h"

#include <utility>

namespace pollux::primary {

JoinListener::JoinListener(std::shared_ptr<protocol::Listener> listener,
                           std::function<void(std::unique_ptr<protocol::Link>)> joined)
    : listener_(std::move(listener)), joined_(std::move(joined)), thread_([this] { run(); }) {}

JoinListener::~JoinListener() {
  stopping_ = true;
  listener_->close();
  thread_.join();
}

void JoinListener::run() {
  while (!stopping_) {
    auto link = listener_->accept(std::chrono::seconds(1));
    if (link && !stopping_) joined_(std::move(link));
  }
}

}  // namespace pollux::primary
