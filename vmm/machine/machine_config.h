// What a machine is made of, as the guest sees it; nothing of the host (paths, TAP names) is in here.
#pragma once

#include <compare>
#include <cstdint>
#include <vector>

#include "base/bytes.h"
#include "vmm/net/tap.h"

namespace pollux::vmm {

inline constexpr unsigned kMaxVcpus = 8;
inline constexpr std::size_t kMaxDisks = 8;
inline constexpr std::size_t kMaxNics = 4;

// How KVM tells which pages were written (Documentation/virt/kvm/api.rst, KVM_GET_DIRTY_LOG and 8.29).
enum class DirtyLog {
  kBitmap,  // a harvest scans a bit for each page of the guest
  // A harvest reads an entry for each page written. Since Linux 6.17 KVM_RESET_DIRTY_RINGS ends early when the calling thread
  // has a signal pending, and then forgets to protect up to 64 of the pages that it had taken from the ring: what is written
  // to them afterwards is never told (virt/kvm/dirty_ring.c, kvm_dirty_ring_reset()). Signals are blocked meanwhile; but
  // that the process is stopped (SIGSTOP, a debugger, a freezer) cannot be.
  kRing,
};

struct DiskConfig {
  std::uint64_t size = 0;  // bytes, a multiple of kSectorSize
  bool read_only = false;
  bool operator==(const DiskConfig&) const = default;
};

struct NicConfig {
  MacAddress mac{};
  bool operator==(const NicConfig&) const = default;
};

// Of which kind a machine is.
enum class MachineProfile : std::uint8_t {
  kStandard = 0,       // a PC, for any stock guest
  kDeterministic = 1,  // for guests made with vmm/guest: one vCPU, epochs, inputs only between them
};

// How long an epoch of a deterministic machine is at most: the count its guest starts it with (vmm/guest/abi.h).
struct EpochLength {
  std::uint64_t sites = 100'000;
  auto operator<=>(const EpochLength&) const = default;
};

struct MachineConfig {
  std::uint64_t memory_bytes = 0;  // a multiple of kPageSize
  std::uint32_t vcpus = 1;         // 1..kMaxVcpus
  std::vector<DiskConfig> disks;
  std::vector<NicConfig> nics;
  MachineProfile profile = MachineProfile::kStandard;
  bool operator==(const MachineConfig&) const = default;
};

// Cap'n Proto (vmm/state/machine_state.capnp); decode throws Error on anything malformed or out of limits.
Bytes encode(const MachineConfig& config);
MachineConfig decode_machine_config(ByteView bytes);

}  // namespace pollux::vmm
