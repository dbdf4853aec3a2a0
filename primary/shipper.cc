#include "primary/shipper.h"

#include <algorithm>
#include <iterator>
#include <utility>

#include "base/error.h"
#include "base/thread_name.h"

namespace pollux::primary {
namespace {
// For a peer that takes what was sent last; a link is closed after it in any case.
constexpr auto kLastWordsTimeout = std::chrono::seconds(10);
}  // namespace

std::uint64_t Parcel::body_bytes() const {
  std::uint64_t bytes = 0;
  for (const ByteView part : body) bytes += part.size();
  return bytes;
}

Shipper::Shipper(std::unique_ptr<protocol::Link> link) : link_(std::move(link)), thread_([this] { run(); }) {}

Shipper::~Shipper() {
  abort();
  thread_.join();
}

void Shipper::push(Parcel parcel) {
  std::vector<Parcel> one;
  one.push_back(std::move(parcel));
  push(std::move(one));
}

void Shipper::push(std::vector<Parcel> parcels) {
  if (parcels.empty()) return;
  {
    const std::lock_guard lock(mutex_);
    if (closed_ || closing_) return;
    POLLUX_ASSERT(queue_.size() + parcels.size() <= kMaxQueuedParcels);
    std::ranges::move(parcels, std::back_inserter(queue_));
  }
  changed_.notify_all();
}

bool Shipper::wait_for_room() {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [&] { return closed_ || closing_ || queue_.size() < kRoomyParcels; });
  return !closed_ && !closing_;
}

void Shipper::close_when_sent() {
  {
    const std::lock_guard lock(mutex_);
    closing_ = true;
  }
  changed_.notify_all();
}

void Shipper::retire() {
  {
    const std::lock_guard lock(mutex_);
    closing_ = true;
    std::erase_if(queue_, [](const Parcel& parcel) { return !std::holds_alternative<protocol::Goodbye>(parcel.message); });
  }
  changed_.notify_all();
}

void Shipper::abort() {
  {
    const std::lock_guard lock(mutex_);
    closed_ = true;
    queue_.clear();
  }
  changed_.notify_all();
  link_->close();  // also ends a send() that waits for a slow peer
}

void Shipper::wait_until_sent(std::chrono::milliseconds timeout) {
  std::unique_lock lock(mutex_);
  changed_.wait_for(lock, timeout, [&] { return closed_ || (queue_.empty() && !sending_); });
}

void Shipper::wait_until_closed(std::chrono::milliseconds timeout) {
  std::unique_lock lock(mutex_);
  changed_.wait_for(lock, timeout, [&] { return ended_; });
}

void Shipper::run() {
  name_this_thread("shipper");
  std::unique_lock lock(mutex_);
  while (!closed_) {
    changed_.wait(lock, [&] { return closed_ || closing_ || !queue_.empty(); });
    if (queue_.empty()) break;
    Parcel parcel = std::move(queue_.front());
    queue_.pop_front();
    sending_ = true;
    const protocol::More more = queue_.empty() ? protocol::More::kNo : protocol::More::kYes;
    lock.unlock();
    const bool sent = link_->send(parcel.message, parcel.body, more);
    parcel = {};  // gives its memory back before anyone waits for it
    lock.lock();
    sending_ = false;
    if (!sent) {
      closed_ = true;
      queue_.clear();
    }
    changed_.notify_all();
  }
  const bool orderly = closing_ && !closed_;
  closed_ = true;
  queue_.clear();
  lock.unlock();
  changed_.notify_all();
  if (orderly) {
    (void)link_->flush(kLastWordsTimeout);  // closing forgets what the kernel was not given yet; abort() ends the wait
    link_->close();
  }
  lock.lock();
  ended_ = true;
  lock.unlock();
  changed_.notify_all();
}

}  // namespace pollux::primary
