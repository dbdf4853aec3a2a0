#include "vmm/machine/bus.h"

#include <algorithm>
#include <bit>

#include "base/error.h"

namespace pollux::vmm {

void Bus::add(std::uint64_t start, std::uint64_t length, BusDevice& device) {
  const auto place =
      std::find_if(windows_.begin(), windows_.end(), [&](const Window& w) { return w.start > start; });
  POLLUX_ASSERT(place == windows_.end() || start + length <= place->start);
  POLLUX_ASSERT(place == windows_.begin() || std::prev(place)->start + std::prev(place)->length <= start);
  windows_.insert(place, {start, length, &device});
}

const Bus::Window* Bus::find(std::uint64_t address, std::size_t width) const {
  constexpr std::size_t kWidest = 8;
  if (!std::has_single_bit(width) || width > kWidest) return nullptr;
  const auto after = std::upper_bound(windows_.begin(), windows_.end(), address,
                                      [](std::uint64_t wanted, const Window& w) { return wanted < w.start; });
  if (after == windows_.begin()) return nullptr;
  const Window& window = *std::prev(after);
  const std::uint64_t offset = address - window.start;
  return offset < window.length && width <= window.length - offset ? &window : nullptr;
}

void Bus::read(std::uint64_t address, MutableByteView into) const {
  std::fill(into.begin(), into.end(), std::byte{0xff});
  if (const Window* window = find(address, into.size())) window->device->read(address - window->start, into);
}

void Bus::write(std::uint64_t address, ByteView from) const {
  if (const Window* window = find(address, from.size())) window->device->write(address - window->start, from);
}

}  // namespace pollux::vmm
