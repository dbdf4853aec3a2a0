// What makes a virtio device a disk, a NIC, ...: the part behind the transport.
//
// The transport (virtio_mmio.h) owns registers, queues, the lock and the interrupt; a function serves
// requests.
#pragma once

#include <cstdint>
#include <functional>
#include <span>

#include "base/bytes.h"
#include "vmm/devices/virtio/queue.h"
#include "vmm/devices/virtio/virtio_state.capnp.h"
#include "vmm/memory/guest_memory.h"

namespace pollux::vmm {

// virtio 1.2, section 5.
enum class DeviceType : std::uint32_t { kNet = 1, kBlock = 2, kConsole = 3, kEntropy = 4 };

struct QueueIndex {
  std::uint32_t value = 0;
  auto operator<=>(const QueueIndex&) const = default;
};

constexpr std::uint64_t feature_bit(unsigned bit) { return std::uint64_t{1} << bit; }

// What a function may ask of its transport. Except where it says otherwise: with the device lock held.
class VirtioTransport {
 public:
  virtual ~VirtioTransport() = default;
  [[nodiscard]] virtual GuestMemory& memory() = 0;
  [[nodiscard]] virtual Queue& queue(QueueIndex index) = 0;
  [[nodiscard]] virtual bool negotiated(std::uint64_t feature) const = 0;
  // The driver is up, has broken no rule since its last reset, and this queue is enabled.
  [[nodiscard]] virtual bool live(QueueIndex index) const = 0;
  // Interrupts the driver if it wants that for what was pushed to the queue.
  virtual void signal(QueueIndex index) = 0;
  // Runs `work` without the device lock and takes it again (which waits while the machine is frozen).
  virtual void unlocked(const std::function<void()>& work) = 0;

  // Without the lock: runs `work` holding it.
  virtual void locked(const std::function<void()>& work) = 0;
  // Without the lock, from any thread: has the function serve the queue, on the device's loop.
  virtual void notify(QueueIndex index) = 0;
};

class VirtioFunction {
 public:
  virtual ~VirtioFunction() = default;

  [[nodiscard]] virtual DeviceType type() const = 0;
  // Device-specific feature bits to offer; the transport adds those of the queues and VIRTIO_F_VERSION_1.
  [[nodiscard]] virtual std::uint64_t features() const = 0;
  // One maximum size, a power of two up to kMaxQueueSize, for each queue.
  [[nodiscard]] virtual std::span<const std::uint16_t> queue_sizes() const = 0;
  // The device-specific configuration space, which never changes and which the driver cannot write.
  [[nodiscard]] virtual ByteView config() const = 0;

  // Called once by the transport, which outlives every other call.
  void attach(VirtioTransport& transport) { transport_ = &transport; }

  // The rest with the device lock held. serve() takes requests off a live queue, at most its bound per call,
  // and says whether more may wait. Throws DriverError when the driver broke a rule.
  [[nodiscard]] virtual bool serve(QueueIndex index) = 0;
  // Forgets everything the driver gave it; work under way outside the lock must not complete.
  virtual void reset() = 0;
  // restore() throws Error when the state is of another kind or impossible; queues are restored before.
  virtual void save(schema::VirtioDeviceState::Function::Builder state) const = 0;
  virtual void restore(schema::VirtioDeviceState::Function::Reader state) = 0;

 protected:
  [[nodiscard]] VirtioTransport& transport() const { return *transport_; }

 private:
  VirtioTransport* transport_ = nullptr;
};

}  // namespace pollux::vmm
