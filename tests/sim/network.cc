#include "network.h"

#include <algorithm>
#include <utility>

#include "world.h"

namespace pollux::sim {

using namespace std::chrono_literals;

namespace {

// A segment as the value of an event.
std::uint32_t event_value(Direction direction, std::uint32_t number) {
  return (number << 1) | static_cast<std::uint32_t>(direction);
}
std::uint32_t number_of(std::uint32_t segment) { return segment >> 1; }

Direction against(Direction direction) {
  return direction == Direction::kToBackup ? Direction::kToPrimary : Direction::kToBackup;
}

}  // namespace

void Network::send(std::size_t link, Direction direction, Packet packet) {
  if (!pipe(link, direction).open) return;
  put(link, direction, std::move(packet));
  world_.require(queued(link, direction) <= kMaxQueued, "a bounded queue of the network is exceeded");
}

// The link's end is no frame: it has no number, and no mischief happens to it.
void Network::put(std::size_t link, Direction direction, Packet packet) {
  Pipe& to = pipe(link, direction);
  if (!packet.message) return append(link, direction, 0, std::move(packet));
  const std::uint64_t frame = to.frames_sent++;
  Traffic& seen = world_.seen().traffic;
  if (to.mischief == Mischief::kLost) {
    to.mischief.reset();
    ++seen.frames_lost;
    return;
  }
  append(link, direction, frame, packet);
  if (to.mischief == Mischief::kRepeated) {
    to.mischief.reset();
    ++seen.frames_repeated;
    append(link, direction, frame, std::move(packet));
  } else if (to.mischief == Mischief::kSwapped && to.flight.size() >= 2) {
    Segment& last = to.flight.back();
    Segment& before = to.flight[to.flight.size() - 2];
    if (before.arrived) return;
    to.mischief.reset();
    ++seen.frames_swapped;
    std::swap(last.frame, before.frame);
    std::swap(last.packet, before.packet);
  }
}

void Network::append(std::size_t link, Direction direction, std::uint64_t frame, Packet packet) {
  Pipe& to = pipe(link, direction);
  to.flight.push_back({frame, std::move(packet)});
  transmit(link, direction, to.first + static_cast<std::uint32_t>(to.flight.size()) - 1);
}

void Network::transmit(std::size_t link, Direction direction, std::uint32_t number) {
  Pipe& to = pipe(link, direction);
  Segment& segment = *in_flight(to, number);
  const std::uint32_t value = event_value(direction, number);
  Traffic& seen = world_.seen().traffic;
  const unsigned before = segment.transmissions++;
  segment.lost = strikes(link, Weather::kLoss);
  if (segment.lost) {
    ++seen.segments_lost;
    return world_.schedule(world_.now() + kRetransmission * (1 << before), EventKind::kSendAgain, {}, link, value);
  }
  const Time delay = world_.random().between(50us, 2ms) + links_[link].extra_delay;
  Time at = std::max(to.last_delivery, world_.now() + delay);
  if (strikes(link, Weather::kReordering)) {
    at += world_.random().between(1ms, 30ms);  // those after it overtake it
  } else {
    to.last_delivery = at;
  }
  world_.schedule(at, EventKind::kDeliver, {}, link, value);
  if (!strikes(link, Weather::kRepetition)) return;
  ++seen.segments_repeated;
  world_.schedule(at + world_.random().between(1us, 30ms), EventKind::kDeliver, {}, link, value);
}

bool Network::strikes(std::size_t link, Weather weather) {
  return links_[link].weather[static_cast<std::size_t>(weather)] && world_.random().one_in(3);
}

// Null: it was received in order, or cut off with the link.
Network::Segment* Network::in_flight(Pipe& pipe, std::uint32_t number) {
  if (number < pipe.first || number - pipe.first >= pipe.flight.size()) return nullptr;
  return &pipe.flight[number - pipe.first];
}

void Network::deliver(std::size_t link, std::uint32_t segment) {
  const Direction direction = direction_of(segment);
  Pipe& to = pipe(link, direction);
  if (to.stalled) {
    to.held.push_back(segment);
    return world_.require(to.held.size() <= 2 * kMaxQueued, "a bounded queue of the network is exceeded");
  }
  Segment* const came = in_flight(to, number_of(segment));
  if (came == nullptr || came->arrived) return;
  came->arrived = true;
  if (number_of(segment) != to.first) ++world_.seen().traffic.segments_early;
  while (!to.flight.empty() && to.flight.front().arrived) {
    Segment next = std::move(to.flight.front());
    to.flight.pop_front();
    ++to.first;
    receive_frame(link, direction, std::move(next));
  }
}

void Network::send_again(std::size_t link, std::uint32_t segment) {
  const Direction direction = direction_of(segment);
  const Segment* const lost = in_flight(pipe(link, direction), number_of(segment));
  if (lost == nullptr || lost->arrived) return;
  if (lost->transmissions < kMaxTransmissions) return transmit(link, direction, number_of(segment));
  ++world_.seen().traffic.links_given_up;
  break_link(link);
}

void Network::receive_frame(std::size_t link, Direction direction, Segment segment) {
  Pipe& to = pipe(link, direction);
  if (segment.packet.message && segment.frame != to.frames_received && checks_frames_) return refuse_frame(link, direction);
  if (segment.packet.message) ++to.frames_received;
  to.arrived.push_back(std::move(segment.packet));
}

// The session that receives ends the link: nothing more of the other side is heard, which sees the end after what was sent to
// it before.
void Network::refuse_frame(std::size_t link, Direction direction) {
  ++world_.seen().traffic.frames_refused;
  world_.remark("a session refuses a frame out of order, and its link breaks");
  Pipe& to = pipe(link, direction);
  forget_flight(to);
  to.arrived.push_back({});
  to.open = false;
  Pipe& back = pipe(link, against(direction));
  if (back.open) put(link, against(direction), {});
  back.open = false;
}

void Network::forget_flight(Pipe& pipe) {
  pipe.first += static_cast<std::uint32_t>(pipe.flight.size());
  pipe.flight.clear();
}

std::size_t Network::queued(std::size_t link, Direction direction) {
  const Pipe& of = pipe(link, direction);
  return of.flight.size() + of.arrived.size();
}

void Network::close(std::size_t link, Direction direction) {
  Pipe& own = pipe(link, direction);
  if (own.open) put(link, direction, {});
  own.open = false;
  // What the other side still sends meets a closed socket.
  Pipe& other = pipe(link, against(direction));
  other.open = false;
  forget_flight(other);
  other.arrived.clear();
}

void Network::break_link(std::size_t link) {
  for (const Direction direction : {Direction::kToBackup, Direction::kToPrimary}) {
    Pipe& broken = pipe(link, direction);
    if (!broken.open) continue;
    broken.flight.resize(world_.random().below(broken.flight.size() + 1));
    const auto lost = std::ranges::find_if(broken.flight, [](const Segment& one) { return one.lost && !one.arrived; });
    broken.flight.erase(lost, broken.flight.end());
    put(link, direction, {});
    broken.open = false;
  }
}

void Network::silence(std::size_t link) {
  for (Pipe& pipe : links_[link].pipes) {
    pipe.open = false;
    pipe.flight.resize(world_.random().below(pipe.flight.size() + 1));
  }
}

void Network::clear(std::size_t link) {
  links_[link].weather = {};
  for (Pipe& pipe : links_[link].pipes) pipe.mischief.reset();
}

void Network::stall(std::size_t link, Direction direction) { pipe(link, direction).stalled = true; }

void Network::heal(std::size_t link, Direction direction) {
  Pipe& healed = pipe(link, direction);
  healed.stalled = false;
  for (const std::uint32_t segment : std::exchange(healed.held, {})) {
    world_.schedule(world_.now() + 1us, EventKind::kDeliver, {}, link, segment);
  }
}

}  // namespace pollux::sim
