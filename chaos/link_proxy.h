// A cable that can be harmed: a TCP proxy in user space between two replicas, for hosts whose kernel cannot delay or
// drop packets by itself.
//
// What TCP makes of a network's faults is what passes here: lost packets are a stall, and after the heal everything
// arrives. So a cut stalls connections and leaves them open; one that is made meanwhile is not answered. Only
// disconnect() breaks them. A one-way cut stalls one direction; the other goes on, as long as its sender needs no answer.
#pragma once

#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>

namespace pollux::chaos {

enum class Direction : std::uint8_t {
  kForward,   // from the side that connected
  kBackward,  // to it
};
inline constexpr std::array kBothDirections{Direction::kForward, Direction::kBackward};

// Of one direction.
struct LinkConditions {
  bool cut = false;
  std::chrono::milliseconds latency{0};
  std::uint64_t bytes_per_second = 0;  // 0: no limit
};

struct LinkCounters {
  std::uint64_t connections = 0;  // since the start
  std::array<std::uint64_t, 2> bytes{};
  std::uint64_t corrupted = 0;
};

class LinkProxy {
 public:
  // Of each direction of each connection: a sender that is stalled is stopped by TCP once these are full.
  static constexpr std::size_t kMaxBufferedBytes = 256 << 10;
  static constexpr std::size_t kChunkBytes = 16 << 10;
  // One beyond is closed at once.
  static constexpr std::size_t kMaxConnections = 64;

  // Listens on loopback, `port` 0 for a free one, and connects to `target_port` there for each connection that comes.
  // Throws Error.
  explicit LinkProxy(std::uint16_t target_port, std::uint16_t port = 0);
  ~LinkProxy();
  LinkProxy(const LinkProxy&) = delete;
  LinkProxy& operator=(const LinkProxy&) = delete;

  [[nodiscard]] std::uint16_t port() const;
  // Thread safe; each has its effect on all connections, present and future, when it returns.
  void set(Direction direction, const LinkConditions& conditions);
  void cut();
  void heal();  // all conditions as at the start
  // Flips one bit in the next chunk of this direction.
  void corrupt_next(Direction direction);
  void disconnect();  // every connection that there is
  [[nodiscard]] LinkCounters counters() const;

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace pollux::chaos
