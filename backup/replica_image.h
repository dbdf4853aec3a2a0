// The backup's passive copy of the machine: RAM, disks, and the state at the end of the last applied epoch.
//
// Everything that comes from the primary is checked against the machine's shape before it touches anything:
// protocol::ProtocolError says what did not fit.
#pragma once

#include <memory>
#include <optional>
#include <string>

#include "backup/epoch_record.h"
#include "protocol/message.h"
#include "vmm/machine/backends.h"
#include "vmm/machine/machine_config.h"
#include "vmm/memory/guest_memory.h"

namespace pollux::backup {

// Not thread safe. During full sync the receiving thread owns it, afterwards the applier.
class ReplicaImage {
 public:
  // Why the machine cannot live here: disks or NICs of another shape; nothing when it can.
  static std::optional<std::string> mismatch(const vmm::MachineConfig& config, vmm::Backends& backends);

  // Throws Error when the host refuses the memory.
  ReplicaImage(vmm::MachineConfig config, vmm::Backends& backends);

  // Full sync.
  [[nodiscard]] Bytes digests(const protocol::DiskDigestRequest& request);
  void write_blocks(const protocol::DiskBlocks& header, ByteView body);
  void write_pages(const protocol::SyncPages& header, ByteView body);
  void set_state(Bytes state);

  // Throws when any of it lies outside the machine; touches nothing. Any thread.
  void check(const protocol::EpochPages& header) const;
  void check(const protocol::EpochDiskWrites& header) const;

  // Applies a whole, checked record. Throws Error when a disk refuses.
  void apply(EpochRecord record);
  // Every disk write applied so far is durable when this returns. Throws Error when a disk refuses.
  void make_durable();

  // Gives the parts to a machine; the image is empty afterwards.
  [[nodiscard]] std::unique_ptr<vmm::GuestMemory> take_memory() { return std::move(memory_); }
  // For a while, to be changed by records: the state is that of the next one.
  void take_back(std::unique_ptr<vmm::GuestMemory> memory) { memory_ = std::move(memory); }
  [[nodiscard]] Bytes take_state() { return std::move(state_); }
  [[nodiscard]] const vmm::MachineConfig& config() const { return config_; }

 private:
  void check_runs(const std::vector<protocol::PageRun>& runs) const;
  void check_range(protocol::DiskId disk, std::uint64_t offset, std::uint64_t length) const;
  void store_pages(const std::vector<protocol::PageRun>& runs, ByteView body);
  void perform(const protocol::DiskOperation& operation, ByteView data);

  struct Ram {
    std::uint64_t first = 0;  // page
    std::uint64_t pages = 0;
  };

  vmm::MachineConfig config_;
  vmm::Backends& backends_;
  std::unique_ptr<vmm::GuestMemory> memory_;
  std::vector<Ram> ram_;  // its regions, also when somebody else has the memory
  Bytes state_;
};

}  // namespace pollux::backup
