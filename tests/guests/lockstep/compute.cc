// Kernels of different shapes, each followed by a line with its checksum. rounds=N (1): how often each is
// run; kernel=NAME: only that one. repeat=N (1): how often all that is done, each time with other data. timed=1: also the
// nanoseconds each took, for the benchmark. until_told=1: see rounds.h.
#include "tests/guests/lockstep/rounds.h"
#include "vmm/guest/runtime/guest.h"

using namespace pollux::guest;

namespace {

using u64 = std::uint64_t;

u64 mix(u64 x) {
  x ^= x >> 33;
  x *= 0xff51afd7ed558ccdu;
  x ^= x >> 29;
  return x;
}

// One long dependency.
u64 hash_chain(u64 seed) {
  u64 state = seed;
  for (u64 i = 0; i < 2'000'000; ++i) state = mix(state + i);
  return state;
}

// A loop that vectorizes.
u64 vector_sum(u64 seed) {
  constexpr u64 kWords = 4096;
  static std::uint32_t words[kWords];
  for (u64 i = 0; i < kWords; ++i) words[i] = static_cast<std::uint32_t>(seed + i * 7);
  std::uint32_t sum = 0;
  for (u64 round = 0; round < 1000; ++round) {
    for (u64 i = 0; i < kWords; ++i) sum += words[i];
    words[round] ^= sum;
  }
  return sum;
}

// The shortest loop there is: nothing but loads. The worst case for a counter.
u64 byte_scan(u64 seed) {
  constexpr u64 kBytes = 65536;
  static std::uint8_t bytes[kBytes];
  for (u64 i = 0; i < kBytes; ++i) bytes[i] = static_cast<std::uint8_t>(mix(seed + i) | 1);
  u64 found = 0;
  for (u64 round = 0; round < 50; ++round) {
    bytes[kBytes - 1 - round] = 0;
    u64 at = 0;
    while (bytes[at] != 0) ++at;
    bytes[at] = 1;
    found = found * 31 + at;
  }
  return found;
}

void quick_sort(std::uint32_t* first, std::uint32_t* last) {
  while (last - first > 16) {
    const std::uint32_t pivot = first[(last - first) / 2];
    std::uint32_t *low = first, *high = last - 1;
    while (low <= high) {
      while (*low < pivot) ++low;
      while (*high > pivot) --high;
      if (low <= high) {
        const std::uint32_t swapped = *low;
        *low++ = *high;
        *high-- = swapped;
      }
    }
    quick_sort(first, high + 1);
    first = low;
  }
  for (std::uint32_t* at = first; at < last; ++at) {
    const std::uint32_t value = *at;
    std::uint32_t* to = at;
    for (; to > first && to[-1] > value; --to) *to = to[-1];
    *to = value;
  }
}

u64 sorting(u64 seed) {
  constexpr u64 kCount = 100'000;
  auto* values = new std::uint32_t[kCount];
  for (u64 i = 0; i < kCount; ++i) values[i] = static_cast<std::uint32_t>(mix(seed + i));
  quick_sort(values, values + kCount);
  u64 sum = 0;
  for (u64 i = 0; i < kCount; ++i) {
    require(i == 0 || values[i - 1] <= values[i], "not sorted");
    sum = sum * 31 + values[i];
  }
  delete[] values;
  return sum;
}

u64 matrix(u64 seed) {
  constexpr u64 kSize = 128;
  static double a[kSize][kSize], b[kSize][kSize], c[kSize][kSize];
  for (u64 i = 0; i < kSize; ++i) {
    for (u64 j = 0; j < kSize; ++j) {
      a[i][j] = static_cast<double>(mix(seed + i * kSize + j) % 1000) / 7.0;
      b[i][j] = static_cast<double>(mix(seed ^ (j * kSize + i)) % 1000) / 3.0;
      c[i][j] = 0;
    }
  }
  for (u64 i = 0; i < kSize; ++i) {
    for (u64 k = 0; k < kSize; ++k) {
      for (u64 j = 0; j < kSize; ++j) c[i][j] += a[i][k] * b[k][j];
    }
  }
  u64 sum = 0;
  for (const auto& row : c) {
    for (const double value : row) sum = mix(sum ^ __builtin_bit_cast(u64, value));
  }
  return sum;
}

u64 sieve(u64 seed) {
  const u64 limit = 500'000 + seed % 16;
  auto* composite = new std::uint8_t[limit];
  memset(composite, 0, limit);
  u64 primes = 0;
  for (u64 i = 2; i < limit; ++i) {
    if (composite[i]) continue;
    ++primes;
    for (u64 j = i * i; j < limit; j += i) composite[j] = 1;
  }
  delete[] composite;
  return primes;
}

struct Node {
  Node* next;
  u64 value;
};

u64 pointer_chase(u64 seed) {
  constexpr u64 kNodes = 32768;
  auto* nodes = new Node[kNodes];
  // A permutation that is one cycle: an odd multiplier and an odd addend modulo a power of two.
  u64 at = 0;
  for (u64 i = 0; i < kNodes; ++i) {
    const u64 next = (at * 1'664'525 + 1'013'904'223) % kNodes;
    nodes[at] = {&nodes[next], mix(seed + at)};
    at = next;
  }
  u64 sum = 0;
  const Node* node = nodes;
  for (u64 i = 0; i < 1'000'000; ++i) {
    sum += node->value;
    node = node->next;
  }
  delete[] nodes;
  return sum;
}

// Calls are counted too.
[[gnu::noinline]] u64 fibonacci(u64 n) { return n < 2 ? n : fibonacci(n - 1) + fibonacci(n - 2); }
u64 recursion(u64 seed) { return fibonacci(24 + seed % 2); }

u64 copying(u64 seed) {
  constexpr u64 kBytes = 256 * 1024;
  auto* from = new std::uint8_t[kBytes];
  auto* to = new std::uint8_t[kBytes];
  for (u64 i = 0; i < kBytes; ++i) from[i] = static_cast<std::uint8_t>(mix(seed + i));
  for (u64 round = 0; round < 100; ++round) {
    memcpy(to + round, from, kBytes - round);
    memmove(from + 1, to, kBytes - 1);
  }
  u64 sum = 0;
  for (u64 i = 0; i < kBytes; ++i) sum = sum * 31 + to[i];
  delete[] from;
  delete[] to;
  return sum;
}

struct Kernel {
  const char* name;
  u64 (*run)(u64 seed);
};

constexpr Kernel kKernels[] = {
    {"hash_chain", hash_chain}, {"vector_sum", vector_sum}, {"byte_scan", byte_scan},
    {"sorting", sorting},       {"matrix", matrix},         {"sieve", sieve},
    {"recursion", recursion},   {"copying", copying},       {"pointer_chase", pointer_chase},
};

void run_kernels(u64 repetition) {
  const u64 rounds = parameter("rounds", 1);
  const u64 first = repetition * rounds;
  const bool timed = parameter("timed", 0) != 0;
  const Text only = parameter("kernel");
  for (const Kernel& kernel : kKernels) {
    if (only.data != nullptr && !(only == text_of(kernel.name))) continue;
    const u64 start = timed ? clock_ns() : 0;
    u64 checksum = 0;
    for (u64 round = first; round < first + rounds; ++round) checksum = mix(checksum) ^ kernel.run(round);
    const u64 took = timed ? clock_ns() - start : 0;
    print(kernel.name, " ", Hex{checksum});
    if (timed) print(" ns ", took);
    print("\n");
  }
}

}  // namespace

int guest_main() {
  Rounds all(parameter("repeat", 1));
  for (u64 i = 0; all.follows(i); ++i) run_kernels(i);
  return 0;
}
