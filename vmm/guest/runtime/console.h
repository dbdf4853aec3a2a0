// The console: print(...) of text and numbers; panics.
#pragma once

#include <concepts>
#include <cstddef>
#include <cstdint>

namespace pollux::guest {

// Characters somewhere, not terminated.
struct Text {
  const char* data = nullptr;
  std::size_t size = 0;
};
bool operator==(Text a, Text b);
Text text_of(const char* terminated);

struct Hex {
  std::uint64_t value;
};

// Gathers what print() is given and writes it in few exits: 8 bytes take one.
class Printer {
 public:
  Printer() = default;
  ~Printer() { flush(); }
  Printer(const Printer&) = delete;
  Printer& operator=(const Printer&) = delete;

  void add(Text text);
  void add(const char* terminated) { add(text_of(terminated)); }
  void add(char c) { add(Text{&c, 1}); }
  void add(Hex hex);
  void add(std::unsigned_integral auto number) { add_decimal(number, false); }
  void add(std::signed_integral auto number) {
    const auto wide = static_cast<std::int64_t>(number);
    add_decimal(wide < 0 ? 0 - static_cast<std::uint64_t>(wide) : static_cast<std::uint64_t>(wide), wide < 0);
  }

 private:
  void add_decimal(std::uint64_t magnitude, bool negative);
  void flush();

  static constexpr std::size_t kRoom = 128;
  char buffer_[kRoom];
  std::size_t size_ = 0;
};

template <class... Items>
void print(const Items&... items) {
  Printer printer;
  (printer.add(items), ...);
}

// Ends the machine with this code; 0 is success.
[[noreturn]] void power_off(std::uint32_t code);
// Says why and ends the machine.
[[noreturn]] void panic(const char* why);
inline void require(bool condition, const char* why) {
  if (!condition) panic(why);
}

}  // namespace pollux::guest
