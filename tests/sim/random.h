// A small deterministic generator: the same seed gives the same world on every machine and standard library.
#pragma once

#include <chrono>
#include <cstdint>

namespace pollux::sim {

using Time = std::chrono::nanoseconds;  // since the world began, or a span

// SplitMix64 (Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators, 2014).
class Random {
 public:
  explicit Random(std::uint64_t seed) : state_(seed) {}

  std::uint64_t next() {
    std::uint64_t z = (state_ += 0x9e3779b97f4a7c15);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
    z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
    return z ^ (z >> 31);
  }
  std::uint64_t below(std::uint64_t bound) { return next() % bound; }
  bool one_in(std::uint64_t n) { return below(n) == 0; }
  Time between(Time least, Time most) {
    return least +
           Time(static_cast<std::int64_t>(below(static_cast<std::uint64_t>((most - least).count()) + 1)));
  }

 private:
  std::uint64_t state_;
};

// How a guest's state depends on everything before it.
inline std::uint64_t mix(std::uint64_t state, std::uint64_t input) {
  return Random(state ^ (input * 0xff51afd7ed558ccd)).next();
}

}  // namespace pollux::sim
