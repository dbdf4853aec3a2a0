// The virtio devices of a deterministic machine: served at epoch ends only, with interrupts that are bits to be set.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <vector>

#include "vmm/deterministic/deterministic_state.capnp.h"
#include "vmm/deterministic/digest.h"
#include "vmm/deterministic/environment.h"
#include "vmm/deterministic/epoch_inputs.h"
#include "vmm/deterministic/inbox.h"
#include "vmm/devices/virtio/virtio_block.h"
#include "vmm/devices/virtio/virtio_console.h"
#include "vmm/devices/virtio/virtio_mmio.h"
#include "vmm/devices/virtio/virtio_net.h"
#include "vmm/io/event_loop.h"
#include "vmm/machine/bus.h"

namespace pollux::vmm {

// The machine's way to the output gate. What the gate answers may not reach the guest, for it would answer differently
// elsewhere: a frame it has no room for is lost.
class DeterministicOutput final : public OutputGate {
 public:
  explicit DeterministicOutput(OutputGate& gate) : gate_(gate) {}

  [[nodiscard]] bool transmit(NicIndex nic, ByteView frame) override;
  void on_room(std::function<void()>) override {}
  void console(ConsoleIndex console, ByteView bytes) override;
  [[nodiscard]] bool read(DiskIndex disk, std::uint64_t offset, MutableByteView into) override;
  [[nodiscard]] bool write(DiskIndex disk, std::uint64_t offset, ByteView from) override;
  [[nodiscard]] bool discard(DiskIndex disk, std::uint64_t offset, std::uint64_t length) override;
  [[nodiscard]] bool flush(DiskIndex disk) override;

  // Whether anything went out since the last call.
  [[nodiscard]] bool take_emitted() { return emitted_.exchange(false); }
  [[nodiscard]] bool emitted() const { return emitted_; }

 private:
  OutputGate& gate_;
  std::atomic<bool> emitted_ = false;
};

// Performs a disk's requests: at once, or on a thread of its own.
class DiskExecutor final : public BlockExecutor {
 public:
  // `performed` is called after each request on the thread.
  DiskExecutor(const std::string& name, std::function<void()> performed)
      : performed_(std::move(performed)), name_(name) {}
  void use_thread(bool use);
  void submit(std::function<void()> perform) override;
  // Until everything submitted was performed.
  void drain();

 private:
  std::function<void()> performed_;
  std::string name_;
  bool threaded_ = false;
  std::unique_ptr<EventLoop> loop_;
};

// A saved machine: what its devices hold of the host's memory, at most, and everything else.
inline constexpr std::size_t kMaxDeterministicStateBytes =
    kMaxDisks * (VirtioBlock::kMaxOutstandingBytes + VirtioBlock::kMaxRequestBytes) +
    kMaxNics * VirtioNet::kMaxWaitingBytes + (std::size_t{1} << 20);

// Used on the machine's thread only.
class DeterministicDevices {
 public:
  DeterministicDevices(const MachineConfig& config, GuestMemory& memory, Environment& environment,
                       OutputGate& output, Inbox& inbox);
  ~DeterministicDevices();

  void add_to(Bus& bus);
  // Disk requests taken from here on are performed on threads, or at once. Waits for those under way.
  void perform_concurrently(bool concurrently);

  // At an epoch's end:
  // Serves the queues whose doorbells rang.
  void serve();
  // Disk requests that were performed and wait to be answered.
  [[nodiscard]] std::vector<DiskCompletion> performed() const;
  // Nothing, or why it cannot be delivered.
  [[nodiscard]] std::optional<std::string> complete(const DiskCompletion& completion);
  // False: for a device that is not there.
  [[nodiscard]] bool deliver(const Arrival& arrival);
  // The events raised since the last call (vmm/guest/abi.h).
  [[nodiscard]] std::uint64_t take_events() { return std::exchange(events_, 0); }
  [[nodiscard]] bool events_raised() const { return events_ != 0; }

  // Last of all: see VirtioBlock::settle().
  void settle();

  void make_uncertain();
  // Of what a driver can tell.
  [[nodiscard]] Digest digest();
  [[nodiscard]] std::vector<std::pair<NicIndex, Bytes>> announcements() const;
  void save(schema::DeterministicState::Builder state);
  void restore(schema::DeterministicState::Reader state);
  // Once, before the first epoch after restore().
  void resume_after_restore();

 private:
  class Slot;
  Slot& add(std::string name, std::unique_ptr<VirtioFunction> function);

  GuestMemory& memory_;
  Inbox& inbox_;
  std::uint64_t events_ = 0;
  std::vector<std::unique_ptr<DiskExecutor>> executors_;
  std::vector<std::unique_ptr<Slot>> slots_;
  std::vector<VirtioBlock*> disks_;
  std::vector<Slot*> disk_slots_;
  std::vector<VirtioNet*> nics_;
  std::vector<Slot*> nic_slots_;
  VirtioConsole* console_ = nullptr;
  Slot* console_slot_ = nullptr;
};

}  // namespace pollux::vmm
