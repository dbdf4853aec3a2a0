// What is left of the keyboard controller: its line to the CPU's reset pin. No keyboard, so no state to save.
#pragma once

#include <functional>

#include "vmm/devices/bus_device.h"

namespace pollux::vmm {

class I8042 final : public BusDevice {
 public:
  explicit I8042(std::function<void()> on_reset) : on_reset_(std::move(on_reset)) {}

  // Both buffers are empty, always: a guest that waits for them before a reset goes on at once.
  void read(std::uint64_t offset, MutableByteView into) override;
  void write(std::uint64_t offset, ByteView from) override;
  void freeze() override {}
  void thaw() override {}

 private:
  std::function<void()> on_reset_;
};

}  // namespace pollux::vmm
