// Writes memory in a known pattern: rounds=N (10) rounds, each of which changes one word in each of pages=N
// (1024) pages; then a checksum of all of it. pause_ms=N (0): sleeps as long after each round. told=N (0): says so
// after every N rounds. until_told=1: see rounds.h. rewrite=1: then nothing but writes another value to a word in each page
// and its own value back, for ever.
#include "tests/guests/lockstep/rounds.h"
#include "vmm/guest/runtime/guest.h"

using namespace pollux::guest;

namespace {

// However an epoch ends, no page's content is another than before.
[[noreturn]] void rewrite(volatile std::uint64_t* words, std::uint64_t stride, std::uint64_t pages) {
  for (;;) {
    for (std::uint64_t page = 0; page < pages; ++page) {
      const std::uint64_t value = words[page * stride];
      words[page * stride] = ~value;
      words[page * stride] = value;
    }
  }
}

}  // namespace

int guest_main() {
  const std::uint64_t pages = parameter("pages", 1024), rounds = parameter("rounds", 10);
  const std::uint64_t pause_ns = parameter("pause_ms", 0) * 1'000'000;
  const std::uint64_t told = parameter("told", 0);
  constexpr std::uint64_t kWords = kPageSize / 8;
  auto* words = static_cast<std::uint64_t*>(allocate_pages(pages * kPageSize));
  if (parameter("rewrite", 0) != 0) rewrite(words, kWords, pages);
  std::uint64_t state = 1;
  Rounds all(rounds);
  for (std::uint64_t round = 0; all.follows(round); ++round) {
    for (std::uint64_t page = 0; page < pages; ++page) {
      std::uint64_t& word = words[page * kWords + (round * 37 + page) % kWords];
      state = (state ^ word) * 0x9e37'79b9'7f4a'7c15 + page;
      state ^= state >> 31;
      word = state;
    }
    if (told != 0 && (round + 1) % told == 0) print("round ", round + 1, " ", Hex{state}, "\n");
    if (pause_ns != 0) sleep_until(clock_ns() + pause_ns);
  }
  std::uint64_t checksum = 0;
  for (std::uint64_t i = 0; i < pages * kWords; ++i) checksum = checksum * 31 + words[i];
  print("memory_writer ", Hex{checksum}, "\n");
  return 0;
}
