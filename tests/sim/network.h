// Links between primaries and backups, as TCP makes them: each direction ordered and whole, delayed,
// stalled by partitions, and broken for good. What is lost, repeated or reordered below TCP is a stall or a
// delay here; what gets past TCP is caught by the frames' authentication and is a break.
#pragma once

#include <array>
#include <deque>
#include <optional>

#include "event_queue.h"
#include "guest_model.h"
#include "protocol/message.h"

namespace pollux::sim {

class World;

struct Packet {
  std::optional<protocol::Message> message;  // none: the link's end
  GuestState body{};                         // of pages and machine states
};

enum class Direction : std::uint8_t { kToBackup, kToPrimary };

class Network {
 public:
  // More packets than these never wait in one direction: epochs in flight, sync steps and heartbeats are
  // bounded.
  static constexpr std::size_t kMaxQueued = 160;

  explicit Network(World& world) : world_(world) {}

  // A new link, not yet open. Each is one connection: nobody connects on it again.
  [[nodiscard]] std::size_t add() {
    links_.emplace_back();
    return links_.size() - 1;
  }
  void open(std::size_t link) {
    pipe(link, Direction::kToBackup).open = pipe(link, Direction::kToPrimary).open = true;
  }
  [[nodiscard]] std::size_t links() const { return links_.size(); }
  void send(std::size_t link, Direction direction, Packet packet);
  // Moves the next packet of the direction to its receiver's queue, unless the direction is stalled.
  void deliver(std::size_t link, Direction direction);
  // The next packet that arrived.
  [[nodiscard]] std::deque<Packet>& arrived(std::size_t link, Direction direction) {
    return pipe(link, direction).arrived;
  }
  [[nodiscard]] std::size_t queued(std::size_t link, Direction direction);

  // An orderly close by the sender of `direction`: what it sent still arrives, then the end.
  void close(std::size_t link, Direction direction);
  // Both ends see the link's end, after some of what was under way.
  void break_link(std::size_t link);
  // As when a host loses power: nothing comes any more, not even the end.
  void silence(std::size_t link);
  void stall(std::size_t link, Direction direction);
  void heal(std::size_t link, Direction direction);
  void set_extra_delay(std::size_t link, Time delay) { links_[link].extra_delay = delay; }

 private:
  struct Pipe {
    std::deque<Packet> flight;
    std::deque<Packet> arrived;
    Time last_delivery{};
    bool open = false;  // to sends
    bool stalled = false;
    std::size_t held = 0;  // deliveries that came due while stalled
  };
  struct Link {
    std::array<Pipe, 2> pipes;
    Time extra_delay{};
  };

  Pipe& pipe(std::size_t link, Direction direction) {
    return links_[link].pipes[static_cast<std::size_t>(direction)];
  }
  void put(std::size_t link, Direction direction, Packet packet);

  World& world_;
  std::deque<Link> links_;
};

}  // namespace pollux::sim
