// What the guest emitted in one epoch, as the output gate holds it and the image writer and the shippers use it.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <vector>

#include "base/bytes.h"
#include "primary/write_overlay.h"
#include "protocol/types.h"
#include "vmm/gates/output_gate.h"

namespace pollux::primary {

enum class DiskOperationKind { kWrite, kDiscard, kFlush };

struct HeldDiskOperation {
  DiskOperationKind kind;
  vmm::DiskIndex disk;
  std::uint64_t offset = 0;
  std::uint64_t length = 0;
  WriteOverlay::Sequence sequence = 0;
  std::shared_ptr<const Bytes> data;  // writes only
};

struct HeldFrame {
  vmm::NicIndex nic;
  Bytes frame;
};

// Everything the guest emitted in one epoch, in order within its kind.
struct HeldEpoch {
  protocol::EpochId epoch;
  std::vector<HeldFrame> frames;
  std::array<Bytes, vmm::kConsoleCount> console;
  std::vector<HeldDiskOperation> disk_operations;
  bool flushed = false;   // a disk was flushed: the epoch is acknowledged only when durable
  // As they count against the gate's limit.
  std::uint64_t emitted_bytes = 0;  // of frames and console: held until release
  std::uint64_t disk_bytes = 0;     // of disk operations: held until they are on the image
};

}  // namespace pollux::primary
