// Views of raw bytes, and the page: the unit of dirty tracking and shipping.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <vector>

namespace pollux {

using Bytes = std::vector<std::byte>;
using ByteView = std::span<const std::byte>;
using MutableByteView = std::span<std::byte>;

// x86 base page. KVM's dirty log and the memory slots count in these.
inline constexpr std::size_t kPageSize = 4096;
inline constexpr unsigned kPageShift = 12;

template <class T>
ByteView bytes_of(const T& object) {
  static_assert(std::is_trivially_copyable_v<T>);
  return std::as_bytes(std::span<const T, 1>(&object, 1));
}

template <class T>
MutableByteView mutable_bytes_of(T& object) {
  static_assert(std::is_trivially_copyable_v<T>);
  return std::as_writable_bytes(std::span<T, 1>(&object, 1));
}

// Whether every byte is zero.
inline bool is_zero(ByteView bytes) {
  // Equal to itself shifted by one byte, and the first is zero: memcmp does the rest at full width.
  return bytes.empty() ||
         (bytes[0] == std::byte{0} && std::memcmp(bytes.data(), bytes.data() + 1, bytes.size() - 1) == 0);
}

}  // namespace pollux
