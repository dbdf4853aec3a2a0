// Guest-physical addresses and frame numbers as types of their own.
#pragma once

#include <compare>
#include <cstdint>

#include "base/bytes.h"

namespace pollux::vmm {

// Guest frame number: a guest-physical address divided by kPageSize.
struct Gfn {
  std::uint64_t value = 0;
  auto operator<=>(const Gfn&) const = default;
};

// A guest-physical address in bytes. Arithmetic may not wrap: callers check lengths first.
struct GuestAddress {
  std::uint64_t value = 0;
  auto operator<=>(const GuestAddress&) const = default;
  friend GuestAddress operator+(GuestAddress address, std::uint64_t bytes) { return {address.value + bytes}; }
  [[nodiscard]] Gfn gfn() const { return {value >> kPageShift}; }
};

inline GuestAddress address_of(Gfn gfn) { return {gfn.value << kPageShift}; }

}  // namespace pollux::vmm
