// Everything a deterministic machine's epoch took from outside: what a second machine needs to execute the same epoch.
//
// Not in here: what is read from a disk. Disks are part of the machine's state, and each machine reads its own.
#pragma once

#include <chrono>
#include <cstdint>
#include <vector>

#include "base/bytes.h"
#include "vmm/devices/virtio/virtio_block.h"
#include "vmm/gates/input_gate.h"
#include "vmm/machine/machine_config.h"

namespace pollux::vmm {

// Epochs are numbered from 0, the boot's.
struct EpochNumber {
  std::uint64_t value = 0;
  auto operator<=>(const EpochNumber&) const = default;
};

enum class EpochBoundary : std::uint8_t {
  kExpired = 0,  // the count was used up
  kWaited = 1,   // the guest had nothing to do
  kEnded = 2,    // the machine ended: power-off, crash
};

struct DiskCompletion {
  DiskIndex disk;
  BlockCompletion completion;
  bool operator==(const DiskCompletion&) const = default;
};

struct EpochInputs {
  EpochLength length;
  // While the guest ran: what it read from the clock and the entropy sources, in order.
  std::vector<std::uint64_t> environment;
  // At the end, in this order:
  EpochBoundary boundary = EpochBoundary::kExpired;
  std::chrono::nanoseconds clock{};  // since the Unix epoch, for the timer
  std::vector<DiskCompletion> completions;
  std::vector<Arrival> arrivals;
};

// Limits of one epoch. What arrives beyond them waits for the next; a guest that asks for more ends the machine.
inline constexpr std::size_t kMaxEnvironmentValues = std::size_t{1} << 18;
inline constexpr std::size_t kMaxArrivals = 4096;
inline constexpr std::size_t kMaxArrivalBytes = std::size_t{8} << 20;  // of all arrivals
inline constexpr std::size_t kMaxCompletions = kMaxDisks * VirtioBlock::kMaxOutstanding;
// Of encoded inputs.
inline constexpr std::size_t kMaxEpochInputsBytes =
    64 + kMaxEnvironmentValues * 8 + kMaxCompletions * 8 + kMaxArrivals * 8 + kMaxArrivalBytes;

Bytes encode(const EpochInputs& inputs);
// Throws Error for anything malformed or beyond a limit; no size in the bytes is trusted.
EpochInputs decode_epoch_inputs(ByteView bytes);

}  // namespace pollux::vmm
