// The output gate of a machine that executes in lockstep on a backup: nothing it emits leaves this host, for the primary's
// copy of it does; disk operations go to this host's own images.
//
// The disk writes of an epoch are held until the epoch is found to have ended as on the primary: what a diverged
// epoch wrote touches no image. After promotion everything passes on to a primary's gate.
//
// Threads: until promote() one thread runs the machine, and calls everything here.
#pragma once

#include <atomic>
#include <functional>
#include <string>
#include <vector>

#include "base/bytes.h"
#include "vmm/gates/output_gate.h"
#include "vmm/machine/backends.h"

namespace pollux::backup {

class SuppressingGate final : public vmm::OutputGate {
 public:
  explicit SuppressingGate(vmm::Backends& backends) : backends_(backends) {}

  // The epoch's writes reach the images. Throws Error when one refuses.
  void apply();
  // Throws Error when an image could not be read: the primary's guest was told that it read, so this host must not go on.
  // Not in read(): devices take an exception there for a fault of their driver.
  void check_reads() const;
  // The epoch's writes are forgotten.
  void discard() { held_.clear(); }
  // From here on this is only the way to `gate`. Nothing is held; the machine stands still.
  void promote(vmm::OutputGate& gate);

  [[nodiscard]] bool transmit(vmm::NicIndex nic, ByteView frame) override;
  void on_room(std::function<void()>) override {}  // a deterministic machine does not wait for room
  void console(vmm::ConsoleIndex console, ByteView bytes) override;
  [[nodiscard]] bool read(vmm::DiskIndex disk, std::uint64_t offset, MutableByteView into) override;
  [[nodiscard]] bool write(vmm::DiskIndex disk, std::uint64_t offset, ByteView from) override;
  [[nodiscard]] bool discard(vmm::DiskIndex disk, std::uint64_t offset, std::uint64_t length) override;
  [[nodiscard]] bool flush(vmm::DiskIndex disk) override;

 private:
  // No data: the range reads as zeros.
  struct Held {
    vmm::DiskIndex disk;
    std::uint64_t offset = 0;
    std::uint64_t length = 0;
    Bytes data;
  };

  vmm::Backends& backends_;
  std::string unreadable_;  // the first image that could not be read
  std::vector<Held> held_;  // bounded by what a guest can have outstanding at its disks
  std::atomic<vmm::OutputGate*> promoted_to_ = nullptr;
};

}  // namespace pollux::backup
