#include "vmm/memory/dirty_set.h"

#include <bit>

#include "base/error.h"

namespace pollux::vmm {
namespace {

std::uint64_t words_for(std::uint64_t bits) { return (bits + 63) / 64; }

// Calls `visit` with the index of each set bit, ascending.
template <class Visit>
void for_each_bit(std::uint64_t bits, Visit&& visit) {
  for (; bits != 0; bits &= bits - 1) visit(static_cast<unsigned>(std::countr_zero(bits)));
}

}  // namespace

DirtySet::DirtySet(Gfn limit)
    : limit_(limit.value),
      summary_words_(words_for(words_for(limit.value))),
      frames_(std::make_unique<std::atomic<std::uint64_t>[]>(words_for(limit.value))),
      summary_(std::make_unique<std::atomic<std::uint64_t>[]>(summary_words_)) {}

void DirtySet::add(Gfn gfn) {
  POLLUX_ASSERT(gfn.value < limit_);
  const std::uint64_t in_word = gfn.value % kFramesPerWord;
  merge({gfn.value - in_word}, std::uint64_t{1} << in_word);
}

void DirtySet::merge(Gfn first, std::uint64_t bits) {
  if (bits == 0) return;
  POLLUX_ASSERT(first.value % kFramesPerWord == 0);
  POLLUX_ASSERT(first.value + static_cast<unsigned>(std::bit_width(bits)) <= limit_);
  const std::uint64_t word = first.value / kFramesPerWord;
  // Whoever makes the word non-zero notes it in the summary; pages that are dirty already cost one load.
  if ((frames_[word].load(std::memory_order_relaxed) & bits) == bits) return;
  if (frames_[word].fetch_or(bits, std::memory_order_relaxed) == 0) {
    summary_[word / 64].fetch_or(std::uint64_t{1} << (word % 64), std::memory_order_relaxed);
  }
}

std::vector<Gfn> DirtySet::take() {
  std::vector<Gfn> taken;
  taken.reserve(last_taken_);  // this epoch is likely about as dirty as the last
  for (std::uint64_t i = 0; i < summary_words_; ++i) {
    if (summary_[i].load(std::memory_order_relaxed) == 0) continue;
    for_each_bit(summary_[i].exchange(0, std::memory_order_relaxed), [&](unsigned j) {
      const std::uint64_t word = i * 64 + j;
      for_each_bit(frames_[word].exchange(0, std::memory_order_relaxed), [&](unsigned bit) {
        taken.push_back({word * kFramesPerWord + bit});
      });
    });
  }
  last_taken_ = taken.size();
  return taken;
}

}  // namespace pollux::vmm
