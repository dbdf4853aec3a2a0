#include "vmm/devices/platform/power.h"

#include <mutex>

namespace pollux::vmm {
namespace {

constexpr std::uint16_t kSciEnable = 1 << 0;  // no SMI command port: always in ACPI mode
constexpr std::uint16_t kSleepEnable = 1 << 13;
constexpr unsigned kSleepTypeShift = 10;
constexpr std::uint16_t kSleepTypeMask = 7;

std::uint16_t with_byte(std::uint16_t value, bool high, std::uint8_t byte) {
  return static_cast<std::uint16_t>(high ? (value & 0x00ff) | byte << 8 : (value & 0xff00) | byte);
}

std::uint8_t byte_of(std::uint16_t value, bool high) {
  return static_cast<std::uint8_t>(high ? value >> 8 : value & 0xff);
}

}  // namespace

std::uint8_t PowerManagement::byte_at(std::uint64_t offset) const {
  const bool high = (offset & 1) != 0;
  switch (offset & ~std::uint64_t{1}) {
    case kEvent: return byte_of(status_, high);
    case kEvent + 2: return byte_of(enable_, high);
    case kControl: return byte_of(control_ | kSciEnable, high);
    default: return 0;
  }
}

void PowerManagement::write_byte(std::uint64_t offset, std::uint8_t value) {
  const bool high = (offset & 1) != 0;
  switch (offset & ~std::uint64_t{1}) {
    case kEvent:
      status_ = static_cast<std::uint16_t>(status_ & ~with_byte(0, high, value));
      break;  // 1 clears
    case kEvent + 2: enable_ = with_byte(enable_, high, value); break;
    case kControl: control_ = with_byte(control_, high, value); break;
    default: break;
  }
}

// Drivers use the registers' own widths; other widths reach the same bytes.
void PowerManagement::read(std::uint64_t offset, MutableByteView into) {
  const std::lock_guard lock(lock_);
  for (std::byte& byte : into) byte = std::byte{byte_at(offset++)};
}

void PowerManagement::write(std::uint64_t offset, ByteView from) {
  bool sleep = false;
  {
    const std::lock_guard lock(lock_);
    for (std::size_t i = 0; i < from.size(); ++i)
      write_byte(offset + i, std::to_integer<std::uint8_t>(from[i]));
    const bool soft_off = ((control_ >> kSleepTypeShift) & kSleepTypeMask) == kSoftOff;
    sleep = (control_ & kSleepEnable) != 0 && soft_off;
    control_ = static_cast<std::uint16_t>(control_ & ~kSleepEnable);  // write-only
  }
  if (sleep) on_power_off_();
  if (offset == kReset && std::to_integer<std::uint8_t>(from[0]) == kResetValue) on_reset_();
}

void PowerManagement::save(schema::PowerState::Builder state) const {
  state.setStatus(status_);
  state.setEnable(enable_);
  state.setControl(control_);
}

void PowerManagement::restore(schema::PowerState::Reader state) {
  status_ = state.getStatus();
  enable_ = state.getEnable();
  control_ = static_cast<std::uint16_t>(state.getControl() & ~kSleepEnable);
}

}  // namespace pollux::vmm
