#include "base/histogram.h"

#include <algorithm>
#include <bit>
#include <cmath>

namespace pollux {

// Values below 2^kSubBits have a bucket each; above, the top kSubBits+1 bits choose the bucket.
std::size_t Histogram::bucket_of(std::uint64_t value) {
  if (value < (1u << kSubBits)) return static_cast<std::size_t>(value);
  const unsigned shift = static_cast<unsigned>(std::bit_width(value)) - kSubBits - 1;
  return (static_cast<std::size_t>(shift + 1) << kSubBits) + ((value >> shift) & ((1u << kSubBits) - 1));
}

std::uint64_t Histogram::bound_of(std::size_t bucket) {
  if (bucket < (1u << kSubBits)) return bucket;
  const unsigned shift = static_cast<unsigned>(bucket >> kSubBits) - 1;
  const std::uint64_t top = (1u << kSubBits) | (bucket & ((1u << kSubBits) - 1));
  return ((top + 1) << shift) - 1;
}

void Histogram::record(std::uint64_t value) {
  ++buckets_[bucket_of(value)];
  ++count_;
  sum_ += value;
  max_ = std::max(max_, value);
}

std::uint64_t Histogram::quantile(double fraction) const {
  if (count_ == 0) return 0;
  const auto wanted = static_cast<std::uint64_t>(std::ceil(fraction * static_cast<double>(count_)));
  std::uint64_t seen = 0;
  for (std::size_t bucket = 0; bucket < kBuckets; ++bucket) {
    seen += buckets_[bucket];
    if (seen >= std::max<std::uint64_t>(wanted, 1)) return std::min(bound_of(bucket), max_);
  }
  return max_;
}

}  // namespace pollux
