#include "vmm/guest/runtime/console.h"

#include "vmm/guest/runtime/memory.h"
#include "vmm/guest/runtime/mmio.h"

namespace pollux::guest {

bool operator==(Text a, Text b) { return a.size == b.size && memcmp(a.data, b.data, a.size) == 0; }

Text text_of(const char* terminated) { return {terminated, strlen(terminated)}; }

void Printer::add(Text text) {
  for (std::size_t i = 0; i < text.size; ++i) {
    if (size_ == kRoom) flush();
    buffer_[size_++] = text.data[i];
  }
}

void Printer::add(Hex hex) {
  char digits[16];
  std::size_t first = sizeof digits;
  std::uint64_t rest = hex.value;
  do {
    digits[--first] = "0123456789abcdef"[rest & 15];
    rest >>= 4;
  } while (rest != 0);
  add(Text{"0x", 2});
  add(Text{digits + first, sizeof digits - first});
}

void Printer::add_decimal(std::uint64_t magnitude, bool negative) {
  char digits[21];
  std::size_t first = sizeof digits;
  do {
    digits[--first] = static_cast<char>('0' + magnitude % 10);
    magnitude /= 10;
  } while (magnitude != 0);
  if (negative) digits[--first] = '-';
  add(Text{digits + first, sizeof digits - first});
}

void Printer::flush() {
  constexpr std::uint64_t kConsole = guest_abi::kEpochDeviceVirtual + guest_abi::kConsole;
  std::size_t done = 0;
  for (; size_ - done >= sizeof(std::uint64_t); done += sizeof(std::uint64_t)) {
    std::uint64_t word = 0;
    __builtin_memcpy(&word, buffer_ + done, sizeof word);
    store_register<std::uint64_t>(kConsole, word);
  }
  if (size_ - done >= sizeof(std::uint32_t)) {
    std::uint32_t word = 0;
    __builtin_memcpy(&word, buffer_ + done, sizeof word);
    store_register<std::uint32_t>(kConsole, word);
    done += sizeof word;
  }
  for (; done < size_; ++done)
    store_register<std::uint8_t>(kConsole, static_cast<std::uint8_t>(buffer_[done]));
  size_ = 0;
}

void power_off(std::uint32_t code) {
  store_register<std::uint32_t>(guest_abi::kEpochDeviceVirtual + guest_abi::kPowerOff, code);
  __builtin_trap();
}

void panic(const char* why) {
  print("guest panic: ", why, "\n");
  power_off(guest_abi::kExitPanic);
}

}  // namespace pollux::guest
