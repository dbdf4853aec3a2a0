// The output gate: the one way by which anything leaves the guest for the world.
//
// Frames, console bytes and disk operations all pass here, so that replication can hold them until their epoch
// is committed without any device knowing. Reads of a disk pass too: a guest must see its own held writes.
#pragma once

#include <cstdint>
#include <functional>

#include "base/bytes.h"

namespace pollux::vmm {

// Which of the machine's disks, NICs or consoles; the index within its kind, in configuration order.
struct DiskIndex {
  std::uint32_t value = 0;
  auto operator<=>(const DiskIndex&) const = default;
};
struct NicIndex {
  std::uint32_t value = 0;
  auto operator<=>(const NicIndex&) const = default;
};
// 0: the 16550 serial port; 1: the virtio console.
struct ConsoleIndex {
  std::uint32_t value = 0;
  auto operator<=>(const ConsoleIndex&) const = default;
};
inline constexpr ConsoleIndex kSerialConsole{0};
inline constexpr ConsoleIndex kVirtioConsole{1};
inline constexpr std::uint32_t kConsoleCount = 2;

// Called by device threads and vCPU threads, concurrently; implementations are thread safe.
class OutputGate {
 public:
  virtual ~OutputGate() = default;

  // An Ethernet frame without virtio header. False: no room now; the device keeps the frame and tries again when
  // the callback of on_room() is called. Never blocks.
  [[nodiscard]] virtual bool transmit(NicIndex nic, ByteView frame) = 0;
  // Called (from any thread) when transmit() may succeed again after having returned false. Set before start.
  virtual void on_room(std::function<void()> callback) = 0;

  // Console bytes. Never refuses, never blocks: a gate that keeps them tells whoever runs the guest, who lets it stand still.
  virtual void console(ConsoleIndex console, ByteView bytes) = 0;

  // Disk operations: byte offsets and lengths, multiples of 512, within the disk (the device checked). They may
  // block, and are called without any device lock held. False: an I/O error, reported to the guest.
  [[nodiscard]] virtual bool read(DiskIndex disk, std::uint64_t offset, MutableByteView into) = 0;
  [[nodiscard]] virtual bool write(DiskIndex disk, std::uint64_t offset, ByteView from) = 0;
  // The range reads as zeros afterwards.
  [[nodiscard]] virtual bool discard(DiskIndex disk, std::uint64_t offset, std::uint64_t length) = 0;
  // True promises: whatever the guest says to the world from here on is said only when every write before the
  // flush is durable.
  [[nodiscard]] virtual bool flush(DiskIndex disk) = 0;
};

}  // namespace pollux::vmm
