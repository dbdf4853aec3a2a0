// Sends one backup its messages, in order, from a thread of its own.
//
// Everything that goes to a backup goes through here, heartbeats too, so that no other thread ever waits for a
// slow link. Bulk data is shared between the shippers of all backups; each encrypts it for its own link.
#pragma once

#include <condition_variable>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "base/bytes.h"
#include "protocol/link/link.h"
#include "protocol/message.h"

namespace pollux::primary {

// A message, its body, and whatever owns the body's memory.
struct Parcel {
  protocol::Message message;
  std::vector<ByteView> body;
  std::shared_ptr<const void> owner;

  [[nodiscard]] std::uint64_t body_bytes() const;
};

// Thread safe.
class Shipper {
 public:
  // More parcels than these are never queued: pages are bounded by the PagePool, disk writes by the gate's limit,
  // epochs by kMaxEpochsInFlight, and sync blocks by wait_for_room().
  static constexpr std::size_t kMaxQueuedParcels = 1 << 17;
  static constexpr std::size_t kRoomyParcels = 32;

  explicit Shipper(std::unique_ptr<protocol::Link> link);
  // Without sending what is queued.
  ~Shipper();

  // Never blocks. Dropped silently once the link is down or closed.
  void push(Parcel parcel);
  // What belongs together: the thread is woken once for it.
  void push(std::vector<Parcel> parcels);
  // Waits until few parcels are queued. False when nothing will be sent any more.
  bool wait_for_room();
  // Sends what is queued, then closes the link; returns at once.
  void close_when_sent();
  // For a backup that was given up: forgets everything queued but a Goodbye, then as close_when_sent().
  void retire();
  // Closes the link and forgets what is queued.
  void abort();
  // Returns when everything is sent or the link is down, at most after `timeout`.
  void wait_until_sent(std::chrono::milliseconds timeout);

  // After close_when_sent() or retire(): returns when the link is closed, at most after `timeout`.
  void wait_until_closed(std::chrono::milliseconds timeout);

  [[nodiscard]] protocol::Link& link() { return *link_; }

 private:
  void run();

  std::unique_ptr<protocol::Link> link_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<Parcel> queue_;
  bool sending_ = false;
  bool closing_ = false;  // close when the queue is empty
  bool closed_ = false;
  bool ended_ = false;  // run() is over
  std::thread thread_;
};

}  // namespace pollux::primary
