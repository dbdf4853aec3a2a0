// Which device answers at an address: one bus for ports, one for memory-mapped I/O.
#pragma once

#include <cstdint>
#include <vector>

#include "vmm/devices/bus_device.h"

namespace pollux::vmm {

// Filled before the first vCPU runs; then read concurrently without a lock.
class Bus {
 public:
  // Windows must not overlap. The device outlives the bus's use.
  void add(std::uint64_t start, std::uint64_t length, BusDevice& device);

  // An access that no device claims wholly, or of a width other than 1, 2, 4 or 8, reads as all ones and
  // writes nothing, as on a PC.
  void read(std::uint64_t address, MutableByteView into) const;
  void write(std::uint64_t address, ByteView from) const;

 private:
  struct Window {
    std::uint64_t start;
    std::uint64_t length;
    BusDevice* device;
  };
  [[nodiscard]] const Window* find(std::uint64_t address, std::size_t width) const;

  std::vector<Window> windows_;  // ascending
};

}  // namespace pollux::vmm
