// The virtio-mmio transport, version 2 (virtio 1.2, 4.2): registers, feature negotiation, queues, interrupt.
//
// A driver that breaks a rule finds DEVICE_NEEDS_RESET set (2.1.2) and the device ignores its queues until
// reset. The device's lock covers registers, queues and function; only a disk's backend operations run
// without it.
//
// With an event loop, queues are served on its thread and a vCPU's exit only posts; without one
// (deterministic guests, tests) they are served on the vCPU thread that writes QueueNotify, which is meant
// for one vCPU.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "vmm/devices/bus_device.h"
#include "vmm/devices/device_lock.h"
#include "vmm/devices/virtio/queue.h"
#include "vmm/devices/virtio/virtio_function.h"
#include "vmm/io/event_loop.h"

namespace pollux::vmm {

// The window to register on the bus, and where a 4-byte write of a queue's index can be taken as an
// ioeventfd.
inline constexpr std::uint64_t kVirtioMmioWindow = 0x200;
inline constexpr std::uint64_t kVirtioQueueNotify = 0x050;
inline constexpr std::uint32_t kMaxVirtioQueues = 8;

// Lifetime: the loop calls into the device, so it is stopped before the device is destroyed; a frozen device
// must be retire()d first, or the loop's thread waits for it for ever.
class VirtioMmio final : public BusDevice, private VirtioTransport {
 public:
  // `name` is for log lines ("disk 0"). `loop` may be null, see above.
  VirtioMmio(std::string name, std::unique_ptr<VirtioFunction> function, GuestMemory& memory,
             InterruptLine& interrupt, EventLoop* loop);
  ~VirtioMmio() override;

  [[nodiscard]] std::uint32_t queue_count() const { return static_cast<std::uint32_t>(queues_.size()); }

  void read(std::uint64_t offset, MutableByteView into) override;
  void write(std::uint64_t offset, ByteView from) override;
  void freeze() override { lock_.freeze(); }
  void thaw() override { lock_.thaw(); }

  // The driver made requests available, or a function can go on with them (an ioeventfd fired, the output
  // gate has room). From any thread, without the lock; on the loop's thread the queue is served before it
  // returns. An index the device does not have is ignored.
  void notify(QueueIndex index) override;

  // Only while frozen.
  void save(schema::VirtioDeviceState::Builder state) const;
  // On a fresh device nobody uses yet. Throws Error when the state does not fit this device or cannot be.
  void restore(schema::VirtioDeviceState::Reader state);
  // Once, after restore() and the first thaw(): interrupts the driver again if it had not acknowledged,
  // issues outstanding requests again and serves all queues, whose notifications may have died with the old
  // host.
  void resume_after_restore();

  // For good: the device never again touches guest memory, gate or interrupt, and no thread waits for it.
  // From any thread, frozen or not.
  void retire();

 private:
  [[nodiscard]] GuestMemory& memory() override { return memory_; }
  [[nodiscard]] Queue& queue(QueueIndex index) override { return queues_[index.value]; }
  [[nodiscard]] bool negotiated(std::uint64_t feature) const override;
  [[nodiscard]] bool live(QueueIndex index) const override;
  void signal(QueueIndex index) override;
  void unlocked(const std::function<void()>& work) override;
  void locked(const std::function<void()>& work) override;

  [[nodiscard]] std::uint64_t offered_features() const;
  [[nodiscard]] std::uint32_t read_register(std::uint64_t offset) const;
  [[nodiscard]] std::uint32_t read_queue_register(std::uint64_t offset) const;
  void write_register(std::uint64_t offset, std::uint32_t value);
  void write_queue_register(std::uint64_t offset, std::uint32_t value);
  void write_queue_address(std::uint64_t offset, std::uint32_t value);
  void write_driver_features(std::uint32_t value);
  void write_status(std::uint32_t value);
  void set_queue_ready(Queue& queue, bool ready);
  void reset();
  void needs_reset(const std::string& why);
  void interrupt(std::uint32_t cause);
  [[nodiscard]] Queue* selected_queue();

  void restore_registers(schema::VirtioDeviceState::Reader state);
  void restore_queues(schema::VirtioDeviceState::Reader state);

  void serve_posted();
  void serve_all();
  void post(QueueIndex index);
  [[nodiscard]] bool serve(QueueIndex index);

  std::string name_;
  std::unique_ptr<VirtioFunction> function_;
  GuestMemory& memory_;
  InterruptLine& interrupt_;
  EventLoop* loop_;
  std::atomic<std::uint32_t> posted_ = 0;  // queues with a notify() on its way to the loop, one bit each
  std::atomic<bool> retired_ = false;

  DeviceLock lock_;
  // Below: guarded by lock_.
  unsigned violations_ = 0;  // of the specification by the driver, for the log
  std::uint32_t status_ = 0;
  std::uint32_t interrupt_status_ = 0;
  std::uint32_t device_features_select_ = 0;
  std::uint32_t driver_features_select_ = 0;
  std::uint32_t queue_select_ = 0;
  std::uint64_t driver_features_ = 0;
  std::vector<Queue> queues_;
};

}  // namespace pollux::vmm
