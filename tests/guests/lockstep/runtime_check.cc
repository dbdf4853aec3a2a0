// The runtime's own promises: memory functions, heap, parameters, printing, environment values. The test
// gives "first=1 text=abc number=42 last=".
#include <initializer_list>

#include "vmm/guest/runtime/guest.h"

using namespace pollux::guest;

namespace {

// Constructed before guest_main().
struct Constructed {
  Constructed() { value = parameter("number", 0); }
  std::uint64_t value;
};
Constructed constructed;

void check_memory_functions() {
  constexpr std::size_t kRoom = 20'000;
  auto* buffer = new std::uint8_t[kRoom];
  auto* expected = new std::uint8_t[kRoom];
  for (const std::size_t bytes :
       {0ul, 1ul, 7ul, 8ul, 9ul, 63ul, 64ul, 65ul, 4095ul, 4096ul, 4097ul, 9000ul}) {
    for (const std::size_t from : {100ul, 101ul, 103ul, 164ul, 5000ul}) {
      for (std::size_t i = 0; i < kRoom; ++i) buffer[i] = static_cast<std::uint8_t>(i * 7 + i / 256);
      for (std::size_t i = 0; i < bytes; ++i) expected[i] = buffer[from + i];
      constexpr std::size_t kTo = 102;
      require(memmove(buffer + kTo, buffer + from, bytes) == buffer + kTo, "memmove: result");
      require(memcmp(buffer + kTo, expected, bytes) == 0, "memmove: content");
      require(buffer[kTo - 1] == static_cast<std::uint8_t>((kTo - 1) * 7), "memmove: too early");
      const std::size_t end = kTo + bytes;
      require(buffer[end] == static_cast<std::uint8_t>(end * 7 + end / 256), "memmove: too late");
    }
    memset(buffer, 1, kRoom);
    memset(buffer + 3, 0xa5, bytes);
    require(buffer[2] == 1 && buffer[3 + bytes] == 1, "memset: bounds");
    for (std::size_t i = 0; i < bytes; ++i) require(buffer[3 + i] == 0xa5, "memset: content");
    memcpy(expected, buffer + 3, bytes);
    require(memcmp(expected, buffer + 3, bytes) == 0, "memcpy: content");
    if (bytes > 0) {
      expected[bytes - 1] = 0xa6;
      require(memcmp(expected, buffer + 3, bytes) > 0 && memcmp(buffer + 3, expected, bytes) < 0,
              "memcmp: order");
    }
  }
  delete[] buffer;
  delete[] expected;
}

void check_heap() {
  void* const first = allocate(100);
  require(reinterpret_cast<std::uint64_t>(first) % 16 == 0, "heap: alignment");
  release(first);
  require(allocate(90) == first, "heap: no reuse");
  const std::size_t room = heap_room();
  for (unsigned i = 0; i < 10'000; ++i) {
    auto* object = new std::uint64_t[1 + i % 100];
    object[i % 100] = i;
    delete[] object;
  }
  require(room - heap_room() < 4096, "heap: leaks");
  require(heap_room() > 1'000'000, "heap: no room");
  const auto* page = static_cast<const std::uint8_t*>(allocate_pages(1));
  require(reinterpret_cast<std::uint64_t>(page) % kPageSize == 0, "heap: page");
}

void check_parameters() {
  require(parameter("text") == text_of("abc"), "parameter: text");
  require(parameter("number", 1) == 42, "parameter: number");
  require(parameter("first", 0) == 1, "parameter: first");
  require(parameter("other", 7) == 7, "parameter: default");
  require(parameter("numbe", 7) == 7, "parameter: prefix");
  require(parameter("last").data != nullptr && parameter("last").size == 0, "parameter: empty");
}

void check_environment() {
  const std::uint64_t before = clock_ns();
  require(clock_ns() >= before && before > 1'600'000'000'000'000'000, "clock");
  require(entropy() != entropy(), "entropy");
  require(take_events(~std::uint64_t{0}) == 0, "an event without cause");
  sleep_until(clock_ns() + 2'000'000);
  require(clock_ns() >= before + 2'000'000, "sleep");
  set_timer(1);  // due at once
  require(wait_for_events(pollux::guest_abi::kTimerEvent) == pollux::guest_abi::kTimerEvent, "timer");
  set_timer(clock_ns() + 1'000'000'000'000);
  set_timer(0);
}

}  // namespace

int guest_main() {
  require(constructed.value == 42, "constructors");
  check_memory_functions();
  check_heap();
  check_parameters();
  check_environment();
  print(0, " ", -1, " ", ~std::uint64_t{0}, " ", static_cast<std::int64_t>(std::uint64_t{1} << 63), " ",
        Hex{0xdeadbeef}, " ", Hex{0}, " ", 'x', " ", "text", "\n");
  print("runtime_check done\n");
  return 0;
}
