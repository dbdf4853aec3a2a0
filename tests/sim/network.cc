#include "network.h"

#include <algorithm>
#include <utility>

#include "world.h"

namespace pollux::sim {

using namespace std::chrono_literals;

void Network::send(std::size_t link, Direction direction, Packet packet) {
  if (!pipe(link, direction).open) return;
  put(link, direction, std::move(packet));
  world_.require(queued(link, direction) <= kMaxQueued, "a bounded queue of the network is exceeded");
}

void Network::put(std::size_t link, Direction direction, Packet packet) {
  Pipe& to = pipe(link, direction);
  const Time delay = world_.random().between(50us, 2ms) + links_[link].extra_delay;
  to.last_delivery = std::max(to.last_delivery, world_.now() + delay);
  to.flight.push_back(std::move(packet));
  world_.schedule(to.last_delivery, EventKind::kDeliver, {}, link, static_cast<std::uint32_t>(direction));
}

void Network::deliver(std::size_t link, Direction direction) {
  Pipe& from = pipe(link, direction);
  if (from.stalled) {
    ++from.held;
    return;
  }
  if (from.flight.empty()) return;
  from.arrived.push_back(std::move(from.flight.front()));
  from.flight.pop_front();
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
  Pipe& other = pipe(link, direction == Direction::kToBackup ? Direction::kToPrimary : Direction::kToBackup);
  other.open = false;
  other.flight.clear();
  other.arrived.clear();
}

void Network::break_link(std::size_t link) {
  for (const Direction direction : {Direction::kToBackup, Direction::kToPrimary}) {
    Pipe& broken = pipe(link, direction);
    if (!broken.open) continue;
    broken.flight.resize(world_.random().below(broken.flight.size() + 1));
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

void Network::stall(std::size_t link, Direction direction) { pipe(link, direction).stalled = true; }

void Network::heal(std::size_t link, Direction direction) {
  Pipe& healed = pipe(link, direction);
  healed.stalled = false;
  for (std::size_t held = std::exchange(healed.held, 0); held > 0; --held) {
    world_.schedule(world_.now() + 1us, EventKind::kDeliver, {}, link, static_cast<std::uint32_t>(direction));
  }
}

}  // namespace pollux::sim
