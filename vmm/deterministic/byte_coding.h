// Little-endian fields in a row, written and read back with every bound checked.
#pragma once

#include <bit>
#include <cstdint>
#include <cstring>
#include <string>
#include <type_traits>

#include "base/bytes.h"
#include "base/error.h"

namespace pollux::vmm {

static_assert(std::endian::native == std::endian::little);

class ByteWriter {
 public:
  template <class T>
  void put(T value) {
    static_assert(std::is_integral_v<T> || std::is_enum_v<T>);
    put_bytes(bytes_of(value));
  }
  // Seven bits to a byte, the lowest first; the highest bit of a byte: another follows (LEB128).
  void put_varint(std::uint64_t value) {
    for (; value >= 0x80; value >>= 7) bytes_.push_back(static_cast<std::byte>(value | 0x80));
    bytes_.push_back(static_cast<std::byte>(value));
  }
  void put_bytes(ByteView bytes) { bytes_.insert(bytes_.end(), bytes.begin(), bytes.end()); }
  void reserve(std::size_t bytes) { bytes_.reserve(bytes); }
  [[nodiscard]] Bytes take() { return std::move(bytes_); }

 private:
  Bytes bytes_;
};

// Throws Error, beginning with `what`, when a field is not wholly there.
class ByteReader {
 public:
  ByteReader(std::string what, ByteView bytes) : what_(std::move(what)), bytes_(bytes) {}

  template <class T>
  T take() {
    static_assert(std::is_integral_v<T>);
    T value;
    const ByteView from = take_bytes(sizeof value);
    std::memcpy(&value, from.data(), sizeof value);
    return value;
  }
  std::uint64_t take_varint() {
    std::uint64_t value = 0;
    for (unsigned shift = 0;; shift += 7) {
      const auto byte = take<std::uint8_t>();
      require(shift < 63 || byte <= 1, "bad number");
      value |= static_cast<std::uint64_t>(byte & 0x7f) << shift;
      if (byte < 0x80) return value;
    }
  }
  // A count of elements, of which each takes at least `each` bytes.
  std::size_t take_count(std::size_t limit, std::size_t each) {
    const auto count = take<std::uint32_t>();
    require(count <= limit && count <= bytes_.size() / each, "bad count");
    return count;
  }
  ByteView take_bytes(std::size_t count) {
    require(count <= bytes_.size(), "too short");
    const ByteView taken = bytes_.first(count);
    bytes_ = bytes_.subspan(count);
    return taken;
  }
  [[nodiscard]] std::size_t left() const { return bytes_.size(); }
  void require(bool condition, const char* why) const {
    if (!condition) throw Error(what_ + ": " + why);
  }
  void require_end() const { require(bytes_.empty(), "bytes behind the end"); }

 private:
  std::string what_;
  ByteView bytes_;
};

}  // namespace pollux::vmm
