// ACPI power management: the PM1 event and control blocks and the reset register (ACPI 6.4, 4.8.3).
#pragma once

#include <cstdint>
#include <functional>

#include "vmm/devices/bus_device.h"
#include "vmm/devices/device_lock.h"
#include "vmm/devices/platform/platform_state.capnp.h"

namespace pollux::vmm {

// No fixed events ever happen (buttons are said to be absent), so the registers only keep what is written,
// and the SCI is never raised.
class PowerManagement final : public BusDevice {
 public:
  // Offsets within the window.
  static constexpr std::uint16_t kEvent = 0;  // status, then enable
  static constexpr std::uint16_t kControl = 4;
  static constexpr std::uint16_t kReset = 6;
  static constexpr std::uint8_t kResetValue = 0x01;
  static constexpr std::uint8_t kSoftOff = 5;  // SLP_TYP of \_S5

  PowerManagement(std::function<void()> on_power_off, std::function<void()> on_reset)
      : on_power_off_(std::move(on_power_off)), on_reset_(std::move(on_reset)) {}

  void read(std::uint64_t offset, MutableByteView into) override;
  void write(std::uint64_t offset, ByteView from) override;
  void freeze() override { lock_.freeze(); }
  void thaw() override { lock_.thaw(); }

  // Only while frozen (or before use).
  void save(schema::PowerState::Builder state) const;
  void restore(schema::PowerState::Reader state);

 private:
  [[nodiscard]] std::uint8_t byte_at(std::uint64_t offset) const;
  void write_byte(std::uint64_t offset, std::uint8_t value);

  std::function<void()> on_power_off_;
  std::function<void()> on_reset_;
  DeviceLock lock_;
  // Below: guarded by lock_.
  std::uint16_t status_ = 0;
  std::uint16_t enable_ = 0;
  std::uint16_t control_ = 0;
};

}  // namespace pollux::vmm
