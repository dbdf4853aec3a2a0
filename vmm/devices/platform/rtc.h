// The CMOS real-time clock (Motorola MC146818): tells the time of the input gate; no alarms, no interrupts.
#pragma once

#include <array>
#include <cstdint>

#include "vmm/devices/bus_device.h"
#include "vmm/devices/device_lock.h"
#include "vmm/devices/platform/platform_state.capnp.h"
#include "vmm/gates/input_gate.h"

namespace pollux::vmm {

// UTC, BCD, 24 hours. The guest cannot set the clock (writes to the time are ignored); the other registers
// keep what it stores.
class Rtc final : public BusDevice {
 public:
  explicit Rtc(InputGate& input) : input_(input) {}

  void read(std::uint64_t offset, MutableByteView into) override;
  void write(std::uint64_t offset, ByteView from) override;
  void freeze() override { lock_.freeze(); }
  void thaw() override { lock_.thaw(); }

  // Only while frozen (or before use). restore() throws Error on impossible state.
  void save(schema::RtcState::Builder state) const;
  void restore(schema::RtcState::Reader state);

 private:
  [[nodiscard]] std::uint8_t read_register() const;

  InputGate& input_;
  mutable DeviceLock lock_;
  // Below: guarded by lock_.
  std::uint8_t index_ = 0;
  std::array<std::uint8_t, 128> registers_{};
};

}  // namespace pollux::vmm
