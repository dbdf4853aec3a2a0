// Device registers: one plain load or store each, which every KVM can emulate. An access is an exit, and
// counted as such.
#pragma once

#include <cstdint>

#include "vmm/guest/abi.h"

namespace pollux::guest {

inline void count(std::uint64_t units) { asm volatile("subq %0, %%r15" : : "er"(units) : "cc"); }

template <class T>
inline T load_register(std::uint64_t address) {
  T value;
  count(guest_abi::kDeviceAccessCount);
  asm volatile("mov %1, %0" : "=r"(value) : "m"(*reinterpret_cast<volatile T*>(address)) : "memory");
  return value;
}

template <class T>
inline void store_register(std::uint64_t address, T value) {
  count(guest_abi::kDeviceAccessCount);
  asm volatile("mov %1, %0" : "=m"(*reinterpret_cast<volatile T*>(address)) : "r"(value) : "memory");
}

inline std::uint64_t load_epoch_register(guest_abi::EpochRegister which) {
  return load_register<std::uint64_t>(guest_abi::kEpochDeviceVirtual + which);
}
inline void store_epoch_register(guest_abi::EpochRegister which, std::uint64_t value) {
  store_register<std::uint64_t>(guest_abi::kEpochDeviceVirtual + which, value);
}

}  // namespace pollux::guest
