// A log-linear histogram with fixed memory, for latencies and counts.
#pragma once

#include <array>
#include <cstdint>

namespace pollux {

// Buckets: 2^kSubBits per power of two, so a quantile is at most 1/32 above the true value.
// Not thread safe; owned by the thread that records.
class Histogram {
 public:
  void record(std::uint64_t value);
  // The smallest bucket bound that `fraction` (0..1] of the values do not exceed; 0 when empty.
  [[nodiscard]] std::uint64_t quantile(double fraction) const;
  [[nodiscard]] std::uint64_t max() const { return max_; }
  [[nodiscard]] std::uint64_t count() const { return count_; }
  [[nodiscard]] std::uint64_t sum() const { return sum_; }

 private:
  static constexpr unsigned kSubBits = 5;
  static constexpr std::size_t kBuckets = (64 - kSubBits + 1) << kSubBits;
  static std::size_t bucket_of(std::uint64_t value);
  static std::uint64_t bound_of(std::size_t bucket);

  std::array<std::uint64_t, kBuckets> buckets_{};
  std::uint64_t count_ = 0;
  std::uint64_t sum_ = 0;
  std::uint64_t max_ = 0;
};

}  // namespace pollux
