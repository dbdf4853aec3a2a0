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

enum class DirtyLog { kRing, kBitmap };

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
