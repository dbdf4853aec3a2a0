// The smallest machine a deterministic guest runs on (vmm/guest/abi.h): one vCPU without interrupt
// controller, RAM, the epoch device, disks in memory and NICs that are callbacks. For tests of guests and
// their runtime; its clock is made up, so that two runs of a guest are the same run.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "base/bytes.h"
#include "base/fd.h"
#include "vmm/devices/virtio/virtio_mmio.h"
#include "vmm/devices/virtio/virtio_net.h"
#include "vmm/gates/output_gate.h"
#include "vmm/kvm/mapping.h"
#include "vmm/kvm/system.h"
#include "vmm/machine/bus.h"
#include "vmm/memory/guest_memory.h"

namespace pollux::testing {

struct EpochMachineConfig {
  std::string kernel;
  std::string command_line;
  std::uint64_t memory_bytes = std::uint64_t{32} << 20;
  std::uint64_t epoch_length = 1'000'000;  // the count of every epoch
  std::vector<std::uint64_t> disks;        // bytes of each
  std::size_t nics = 0;
  bool digests = false;  // keep one of each epoch end
  // For measurements: the clock advances with the processor time of the thread, guest included, whatever else
  // the host does.
  bool cpu_clock = false;
  std::uint64_t max_epochs = ~0ull;
  // Every so many'th block request completes with the status UNCERTAIN, having been done or not; 0: none.
  unsigned uncertain_every = 0;
};

struct EpochMachineResult {
  std::string console;
  std::string failure;  // why the machine stopped, when not by power-off
  std::uint32_t exit_code = ~0u;
  std::uint64_t epochs = 0;  // ended, the boot's included
  std::uint64_t waits = 0;   // of them, by kWait
  std::uint64_t injections = 0;
  std::vector<std::uint64_t> digests;  // of the registers, general and SSE, at each epoch end
  std::uint64_t memory_digest = 0;     // at the end
};

class EpochMachine {
 public:
  explicit EpochMachine(EpochMachineConfig config);
  ~EpochMachine();

  // Called for a frame the guest sent, and when the guest waits with nothing to wait for: true if deliver()
  // was called or a later call may do so.
  std::function<void(std::size_t nic, ByteView frame)> on_frame;
  std::function<bool()> on_idle;
  // For the next epoch end.
  void deliver(std::size_t nic, Bytes frame) { arrivals_.emplace_back(nic, std::move(frame)); }
  [[nodiscard]] Bytes& disk(std::size_t index) { return disks_.at(index); }

  // Until the guest powers off or cannot go on.
  EpochMachineResult run();

 private:
  class Gate;
  class Line;

  void boot();
  void add_devices();
  void handle_mmio();
  void read_epoch_register(std::uint64_t offset, MutableByteView into);
  void write_epoch_register(std::uint64_t offset, ByteView from);
  void end_epoch(bool waited);
  void serve_devices();
  void make_uncertain(std::uint32_t slot);
  void wait_for_input();
  void inject_events();
  [[nodiscard]] std::uint64_t clock() const;
  [[nodiscard]] std::uint64_t register_digest() const;
  [[nodiscard]] std::uint64_t event_word() const;

  EpochMachineConfig config_;
  EpochMachineResult result_;
  vmm::kvm::System system_;
  vmm::GuestMemory memory_;
  Fd vm_, vcpu_;
  vmm::kvm::Mapping run_area_;

  std::vector<Bytes> disks_;
  std::unique_ptr<Gate> gate_;
  std::vector<std::unique_ptr<Line>> lines_;
  std::vector<std::unique_ptr<vmm::VirtioMmio>> devices_;  // by slot
  std::vector<vmm::VirtioNet*> nics_;
  vmm::Bus bus_;
  std::vector<std::pair<std::size_t, Bytes>> arrivals_;
  std::vector<std::pair<std::uint32_t, std::uint32_t>> doorbells_;  // slot, queue

  struct SnoopedQueue {
    std::uint64_t descriptors = 0, used = 0;
    std::uint16_t seen = 0;
  };
  std::map<std::uint32_t, SnoopedQueue> snooped_;  // by slot
  unsigned block_requests_ = 0;

  std::uint64_t made_up_clock_ = 1'700'000'000'000'000'000;
  std::uint64_t timer_ = 0;
  std::uint64_t event_word_ = 0;
  std::uint64_t events_ = 0;
  bool ended_ = false;
  enum class Boundary { kNone, kCounted, kWaited } boundary_ = Boundary::kNone;
};

}  // namespace pollux::testing
