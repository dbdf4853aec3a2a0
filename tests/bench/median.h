// The median of measurements: what benchmarks tell on a machine that does other things, too.
#pragma once

#include <algorithm>
#include <cstddef>
#include <vector>

#include "base/error.h"

namespace pollux::bench {

// Of an even number, the greater of the two in the middle.
inline double median(std::vector<double> values) {
  POLLUX_ASSERT(!values.empty());
  const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

}  // namespace pollux::bench
