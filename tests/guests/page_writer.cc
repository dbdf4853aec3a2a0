// A guest at CPL3 that dirties memory in known ways; see page_writer.h. No libc, no interrupts, no devices.
#include "tests/guests/page_writer.h"

namespace {

using pollux::guests::kArenaAddress;
using pollux::guests::kControlAddress;
using pollux::guests::kStepsPerRound;
using pollux::guests::touches;
using pollux::guests::WriterControl;
using pollux::guests::WriterMode;

constexpr std::uint64_t kPageSize = 4096;
constexpr std::uint64_t kWordsPerPage = kPageSize / sizeof(std::uint64_t);

volatile WriterControl& control() { return *reinterpret_cast<volatile WriterControl*>(kControlAddress); }

volatile std::uint64_t& arena_word(std::uint64_t page, std::uint64_t word) {
  return reinterpret_cast<volatile std::uint64_t*>(kArenaAddress + page * kPageSize)[word];
}

// Until the host raises another request.
void cycle(std::uint64_t request) {
  volatile WriterControl& c = control();
  const std::uint64_t pages = c.pages;
  c.served = request;
  for (std::uint64_t round = 1; c.request == request; ++round) {
    for (std::uint64_t page = 0; page < pages; ++page) arena_word(page, round % kWordsPerPage) = round + page;
    c.rounds = round;
  }
}

void mix() {
  volatile WriterControl& c = control();
  const std::uint64_t pages = c.pages;
  std::uint64_t state = c.seed;
  std::uint64_t step = 0;
  for (; step < c.steps; ++step) {
    if (step % kStepsPerRound == 0) c.rounds = step / kStepsPerRound;
    volatile std::uint64_t& word = arena_word(state % pages, (state >> 32) % kWordsPerPage);
    state = (state ^ word) * 0x9e3779b97f4a7c15u + step;
    state ^= state >> 31;
    word = state;
  }
  c.steps = step;
  c.checksum = state;
}

void touch() {
  volatile WriterControl& c = control();
  const std::uint64_t pages = c.pages, seed = c.seed;
  for (std::uint64_t page = 0; page < pages; ++page) {
    if (touches(seed, page)) arena_word(page, page % kWordsPerPage) = seed + page + 1;
  }
}

}  // namespace

extern "C" [[noreturn]] void guest_main() {
  volatile WriterControl& c = control();
  for (;;) {
    const std::uint64_t request = c.request;
    if (request == c.served) continue;  // only reads: an idle guest dirties nothing
    switch (static_cast<WriterMode>(c.mode)) {
      case WriterMode::kIdle: break;
      case WriterMode::kCycle: cycle(request); continue;
      case WriterMode::kMix: mix(); break;
      case WriterMode::kTouch: touch(); break;
    }
    c.served = request;
  }
}
