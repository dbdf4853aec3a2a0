// Links between primaries and backups, as TCP and the session above it make them.
//
// What one side sends is a stream of frames; each travels as one numbered segment. A segment that is lost is sent again after
// a timeout, one that came before is discarded, and one that came early waits for those before it. So loss, repetition and
// reordering on the way are a delay for who receives, until TCP has tried often enough and gives the link up.
//
// Frames are numbered once more, by the session. What gets past TCP, a frame that never comes, comes twice or before its
// turn although every segment arrived, does not have the number that the session waits for: it breaks the link there.
#pragma once

#include <array>
#include <deque>
#include <optional>
#include <vector>

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

// What happens to a link's segments while a fault lasts.
enum class Weather : std::uint8_t { kLoss, kRepetition, kReordering };

// What happens to one frame, below TCP and unseen by it.
enum class Mischief : std::uint8_t { kLost, kRepeated, kSwapped };

class Network {
 public:
  // More packets than these never wait in one direction: epochs in flight, sync steps and heartbeats are
  // bounded.
  static constexpr std::size_t kMaxQueued = 160;
  // TCP gives a link up when it has sent a segment so often; the first timeout is doubled each time.
  static constexpr unsigned kMaxTransmissions = 6;
  static constexpr Time kRetransmission = std::chrono::milliseconds(5);

  // `checks_frames`: false is a mutant whose session believes that TCP makes no mistakes.
  Network(World& world, bool checks_frames) : world_(world), checks_frames_(checks_frames) {}

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

  // Events: `segment` is what was scheduled as value2.
  void deliver(std::size_t link, std::uint32_t segment);
  void send_again(std::size_t link, std::uint32_t segment);
  // Of a segment.
  [[nodiscard]] static Direction direction_of(std::uint32_t segment) { return static_cast<Direction>(segment & 1); }

  // The next packet that arrived.
  [[nodiscard]] std::deque<Packet>& arrived(std::size_t link, Direction direction) {
    return pipe(link, direction).arrived;
  }
  [[nodiscard]] std::size_t queued(std::size_t link, Direction direction);

  // An orderly close by the sender of `direction`: what it sent still arrives, then the end.
  void close(std::size_t link, Direction direction);
  // Both ends see the link's end, after some of what was under way. It waits for nothing that would have to be sent again.
  void break_link(std::size_t link);
  // As when a host loses power: nothing comes any more, not even the end.
  void silence(std::size_t link);
  void stall(std::size_t link, Direction direction);
  void heal(std::size_t link, Direction direction);
  void set_extra_delay(std::size_t link, Time delay) { links_[link].extra_delay = delay; }
  void set_weather(std::size_t link, Weather weather, bool on) {
    links_[link].weather[static_cast<std::size_t>(weather)] = on;
  }
  // No weather, and no mischief.
  void clear(std::size_t link);
  // To the next frame of the direction that it can happen to.
  void play_mischief(std::size_t link, Direction direction, Mischief mischief) {
    pipe(link, direction).mischief = mischief;
  }

 private:
  struct Segment {
    std::uint64_t frame = 0;  // the session's number
    Packet packet;
    unsigned transmissions = 0;
    bool lost = false;     // the last time
    bool arrived = false;  // and waits for those before it
  };
  struct Pipe {
    std::deque<Segment> flight;  // sent, and not yet received in order
    std::uint32_t first = 0;     // the number of the first of them
    std::uint64_t frames_sent = 0;
    std::uint64_t frames_received = 0;
    std::deque<Packet> arrived;
    Time last_delivery{};
    bool open = false;  // to sends
    bool stalled = false;
    std::vector<std::uint32_t> held;  // segments that came due while stalled
    std::optional<Mischief> mischief;
  };
  struct Link {
    std::array<Pipe, 2> pipes;
    Time extra_delay{};
    std::array<bool, 3> weather{};
  };

  Pipe& pipe(std::size_t link, Direction direction) {
    return links_[link].pipes[static_cast<std::size_t>(direction)];
  }
  [[nodiscard]] static Segment* in_flight(Pipe& pipe, std::uint32_t number);
  static void forget_flight(Pipe& pipe);
  void put(std::size_t link, Direction direction, Packet packet);
  void append(std::size_t link, Direction direction, std::uint64_t frame, Packet packet);
  void transmit(std::size_t link, Direction direction, std::uint32_t number);
  void receive_frame(std::size_t link, Direction direction, Segment segment);
  void refuse_frame(std::size_t link, Direction direction);
  // The weather strikes about every third segment.
  [[nodiscard]] bool strikes(std::size_t link, Weather weather);

  World& world_;
  const bool checks_frames_;
  std::deque<Link> links_;
};

}  // namespace pollux::sim
