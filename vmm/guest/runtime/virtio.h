// The driver's side of virtio-mmio version 2 and its split virtqueues (virtio 1.2, 4.2 and 2.7).
//
// The device serves queues and returns buffers at epoch ends only, and says so by an event; a doorbell costs
// an exit, so requests are offered first and announced together.
#pragma once

#include <cstdint>

#include "vmm/guest/abi.h"
#include "vmm/guest/runtime/mmio.h"

namespace pollux::guest {

enum class VirtioType : std::uint32_t { kNet = 1, kBlock = 2, kConsole = 3, kEntropy = 4 };

// A device, from its reset to DRIVER_OK. Whatever the device refuses is a panic: these machines are known.
class VirtioDevice {
 public:
  // The index'th device of the type, in slot order; nothing found: a panic.
  VirtioDevice(VirtioType type, unsigned index, std::uint64_t wanted_features);
  static unsigned count(VirtioType type);

  // The queues are set up; requests may follow.
  void start();

  [[nodiscard]] bool has(std::uint64_t feature) const { return (features_ & feature) != 0; }
  [[nodiscard]] std::uint64_t event() const { return guest_abi::virtio_event(slot_); }
  template <class T>
  [[nodiscard]] T config(std::uint64_t offset) const {
    return load_register<T>(window_ + 0x100 + offset);
  }
  [[nodiscard]] std::uint32_t read(std::uint64_t offset) const {
    return load_register<std::uint32_t>(window_ + offset);
  }
  void write(std::uint64_t offset, std::uint32_t value) const { store_register(window_ + offset, value); }

 private:
  std::uint32_t slot_ = 0;
  std::uint64_t window_ = 0;
  std::uint64_t features_ = 0;
};

class Virtqueue {
 public:
  static constexpr std::uint16_t kDeviceWrites = 2;

  // Between the device's construction and its start().
  Virtqueue(VirtioDevice& device, std::uint32_t index, std::uint16_t size);

  // Descriptors are the caller's to manage: `size` of them.
  void describe(std::uint16_t descriptor, const void* buffer, std::uint32_t bytes, std::uint16_t flags);
  void chain(std::uint16_t descriptor, std::uint16_t next);
  // Gives the chain that begins at `head` to the device.
  void offer(std::uint16_t head);
  // Rings the doorbell if anything was offered since the last time.
  void announce();

  struct Used {
    std::uint32_t head;
    std::uint32_t written;
  };
  // The next chain the device is done with.
  [[nodiscard]] bool take(Used& used);

 private:
  struct Descriptor {
    std::uint64_t address;
    std::uint32_t length;
    std::uint16_t flags;
    std::uint16_t next;
  };

  VirtioDevice& device_;
  std::uint32_t index_;
  std::uint16_t size_;
  Descriptor* descriptors_;
  volatile std::uint16_t* available_;  // flags, index, ring
  volatile std::uint16_t* used_index_;
  volatile Used* used_ring_;
  std::uint16_t next_available_ = 0;
  std::uint16_t announced_ = 0;
  std::uint16_t next_used_ = 0;
};

}  // namespace pollux::guest
