// The disk writes of one disk that are held back, so that the guest can read what it wrote.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <vector>

#include "base/bytes.h"

namespace pollux::primary {

// A map from byte ranges to the newest held data for them. Not thread safe: the gate locks it.
class WriteOverlay {
 public:
  // Identifies one held operation; later operations have larger numbers.
  using Sequence = std::uint64_t;

  // A part of the disk that held data covers. No data: it reads as zeros.
  struct Extent {
    std::uint64_t offset = 0;
    std::uint64_t length = 0;
    Sequence sequence = 0;
    std::shared_ptr<const Bytes> data;
    std::uint64_t data_offset = 0;  // where in *data this extent begins
  };

  // Newer data hides older where they overlap. `data` empty pointer: zeros.
  void insert(std::uint64_t offset, std::uint64_t length, Sequence sequence, std::shared_ptr<const Bytes> data);
  // Forgets what is left of operation `sequence` in its range, because the image now holds it.
  void erase(std::uint64_t offset, std::uint64_t length, Sequence sequence);
  // What covers any of the range, in order and cut to it. The extents keep their data alive.
  [[nodiscard]] std::vector<Extent> overlapping(std::uint64_t offset, std::uint64_t length) const;
  [[nodiscard]] bool empty() const { return extents_.empty(); }

  // Lays `extents` over `into`, which holds the image's bytes from `offset` on.
  static void patch(std::uint64_t offset, MutableByteView into, const std::vector<Extent>& extents);

 private:
  void split_at(std::uint64_t offset);

  std::map<std::uint64_t, Extent> extents_;  // by offset; never overlapping
};

}  // namespace pollux::primary
