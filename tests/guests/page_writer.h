// What a test on the host and the page_writer guest share: the control page.
#pragma once

#include <cstdint>

namespace pollux::guests {

inline constexpr std::uint64_t kControlAddress = 0x100000;  // 1 MiB
// The pages written; above the guest's own image.
inline constexpr std::uint64_t kArenaAddress = 0x800000;  // 8 MiB

enum class WriterMode : std::uint64_t {
  kIdle = 0,   // reads the control page until another mode is asked for
  kCycle = 1,  // writes one word in each of the first `pages` arena pages, over and over
  kMix = 2,    // `steps` steps of a computation in which every word written depends on all earlier ones; it ends before
               // when the host lowers `steps`
  kTouch = 3,  // writes each arena page whose bit is set in the pattern derived from `seed`, once
};

// Whether kTouch writes arena page `index`: about one page in three.
constexpr bool touches(std::uint64_t seed, std::uint64_t index) {
  std::uint64_t x = seed ^ (index * 0x9e3779b97f4a7c15u);
  x ^= x >> 29;
  x *= 0xbf58476d1ce4e5b9u;
  x ^= x >> 32;
  return x % 3 == 0;
}

// kMix that ends when it is told to.
inline constexpr std::uint64_t kEndless = ~std::uint64_t{0};
// kMix tells how far it is once in so many steps.
inline constexpr std::uint64_t kStepsPerRound = 1 << 16;

// The host writes the first group while the guest is paused or idle, `steps` at any time; the guest writes the second.
struct WriterControl {
  std::uint64_t mode;
  std::uint64_t pages;
  std::uint64_t seed;
  std::uint64_t steps;    // in the end the guest writes here how many there were
  std::uint64_t request;  // raised by the host: the guest starts over in the mode asked for

  alignas(64) std::uint64_t served;  // the request that is done (kMix, kTouch) or under way (kCycle)
  std::uint64_t rounds;              // kCycle: how often all pages were written; kMix: steps / kStepsPerRound
  std::uint64_t checksum;            // kMix
};

}  // namespace pollux::guests
