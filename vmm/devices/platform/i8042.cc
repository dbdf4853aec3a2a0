#include "vmm/devices/platform/i8042.h"

#include <algorithm>

namespace pollux::vmm {
namespace {

constexpr std::uint64_t kCommandPort = 4;  // 0x64
// Commands 0xf0-0xff pulse output lines whose bit is 0; line 0 is the CPU's reset (IBM PC AT Technical
// Reference).
constexpr std::byte kPulse{0xf0};
constexpr std::byte kResetLine{0x01};

}  // namespace

void I8042::read(std::uint64_t, MutableByteView into) { std::fill(into.begin(), into.end(), std::byte{0}); }

void I8042::write(std::uint64_t offset, ByteView from) {
  if (offset != kCommandPort) return;
  if ((from[0] & kPulse) == kPulse && (from[0] & kResetLine) == std::byte{0}) on_reset_();
}

}  // namespace pollux::vmm
