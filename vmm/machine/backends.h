// The host's side of the machine's devices: disk images, TAPs, consoles. Owned outside the machine, because a
// backup opens them long before it has a machine, and they outlive one.
#pragma once

#include <memory>
#include <vector>

#include "base/error.h"
#include "vmm/block/image.h"
#include "vmm/devices/console_port.h"
#include "vmm/gates/output_gate.h"
#include "vmm/net/tap.h"

namespace pollux::vmm {

class Backends {
 public:
  Backends(std::vector<std::unique_ptr<Image>> disks, std::vector<std::unique_ptr<Nic>> nics,
           std::unique_ptr<ConsolePort> serial, std::unique_ptr<ConsolePort> virtio_console)
      : disks_(std::move(disks)), nics_(std::move(nics)) {
    consoles_.push_back(std::move(serial));
    consoles_.push_back(std::move(virtio_console));
  }

  [[nodiscard]] Image& disk(DiskIndex index) { return *disks_.at(index.value); }
  [[nodiscard]] Nic& nic(NicIndex index) { return *nics_.at(index.value); }
  [[nodiscard]] ConsolePort& console(ConsoleIndex index) { return *consoles_.at(index.value); }
  [[nodiscard]] std::uint32_t disk_count() const { return static_cast<std::uint32_t>(disks_.size()); }
  [[nodiscard]] std::uint32_t nic_count() const { return static_cast<std::uint32_t>(nics_.size()); }

 private:
  std::vector<std::unique_ptr<Image>> disks_;
  std::vector<std::unique_ptr<Nic>> nics_;
  std::vector<std::unique_ptr<ConsolePort>> consoles_;
};

}  // namespace pollux::vmm
