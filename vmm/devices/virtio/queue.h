// A split virtqueue (virtio 1.2, 2.7), the device's side.
//
// Everything in the rings comes from a hostile guest: each index, address, length and flag is checked before
// use. A violation throws DriverError, upon which the transport stops the device until the driver resets it.
// Ring indices are shared with vCPUs running on other cores and accessed as atomics.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "base/error.h"
#include "vmm/memory/guest_memory.h"

namespace pollux::vmm {

// Largest queue any device of ours offers; also the longest descriptor chain (2.7.5.3.1).
inline constexpr std::uint16_t kMaxQueueSize = 256;

// The driver broke the virtio specification; what() says how.
class DriverError : public Error {
 public:
  using Error::Error;
};

// A piece of guest memory, checked to be RAM.
struct Segment {
  GuestAddress address;
  std::uint32_t length = 0;
};

// One request: what the driver wrote for the device, then what the device is to write.
struct Chain {
  std::uint16_t head = 0;
  std::vector<Segment> readable;
  std::vector<Segment> writable;
  std::uint64_t readable_bytes = 0;
  std::uint64_t writable_bytes = 0;
};

// Copies between segments, from byte `offset` of them on, and a buffer; returns how many bytes there were.
std::size_t copy_from_guest(const GuestMemory& memory, std::span<const Segment> segments,
                            std::uint64_t offset, MutableByteView into);
std::size_t copy_to_guest(GuestMemory& memory, std::span<const Segment> segments, std::uint64_t offset,
                          ByteView from);

// A served request: `written` bytes from the start of its writable segments are valid.
struct UsedEntry {
  std::uint16_t head = 0;
  std::uint32_t written = 0;
};

// The part of a queue that is saved and that the driver sets through registers.
struct QueueRegisters {
  std::uint16_t size = 0;
  bool ready = false;
  GuestAddress descriptors;  // descriptor table
  GuestAddress driver;       // available ring
  GuestAddress device;       // used ring
  bool operator==(const QueueRegisters&) const = default;
};

// Not thread safe: used under its device's lock.
class Queue {
 public:
  Queue(GuestMemory& memory, std::uint16_t max_size);

  [[nodiscard]] std::uint16_t max_size() const { return max_size_; }
  [[nodiscard]] const QueueRegisters& registers() const { return registers_; }
  // Only while not ready.
  void set_size(std::uint16_t size) { registers_.size = size; }
  void set_addresses(GuestAddress descriptors, GuestAddress driver, GuestAddress device);
  // Throws DriverError when size, alignment or addresses are unusable. Indices start at 0.
  void enable(bool event_index, bool indirect);
  void disable();
  void reset();
  [[nodiscard]] bool ready() const { return registers_.ready; }

  // The next available request. Nothing: none is waiting, and the driver will notify when there is one.
  [[nodiscard]] std::optional<Chain> pop();
  // Gives back the `count` requests popped last, to be popped again.
  void unpop(std::uint16_t count);
  // Walks the chain that starts at `head` (again, for a request popped before the device was saved).
  [[nodiscard]] Chain chain_at(std::uint16_t head) const;

  // Returns requests to the driver, which sees either all of them or none yet.
  void push_used(std::span<const UsedEntry> entries);
  void push_used(std::uint16_t head, std::uint32_t written);
  // Whether the driver wants an interrupt for what was pushed since the last call (2.7.7.2).
  [[nodiscard]] bool take_interrupt_request();

  // Saved beside the registers.
  [[nodiscard]] std::uint16_t next_available() const { return next_available_; }
  [[nodiscard]] std::uint16_t next_used() const { return next_used_; }
  // Where avail_event stands, if that is known.
  [[nodiscard]] std::optional<std::uint16_t> asked_at() const { return asked_at_; }
  // Throws Error when the saved values are not possible.
  void restore(const QueueRegisters& registers, std::uint16_t next_available, std::uint16_t next_used,
               std::optional<std::uint16_t> asked_at, bool event_index, bool indirect);

 private:
  struct Descriptor;
  [[nodiscard]] Descriptor descriptor_at(GuestAddress table, std::uint32_t index) const;
  void append(Chain& chain, const Descriptor& descriptor) const;
  void append_indirect(Chain& chain, const Descriptor& descriptor) const;
  void check_layout() const;
  [[nodiscard]] std::uint16_t waiting() const;
  void ask_for_notification();
  [[nodiscard]] std::uint16_t load(GuestAddress address) const;
  void store(GuestAddress address, std::uint16_t value);

  GuestMemory& memory_;
  std::uint16_t max_size_;
  QueueRegisters registers_;
  bool event_index_ = false;  // VIRTIO_F_EVENT_IDX negotiated
  bool indirect_ = false;     // VIRTIO_F_INDIRECT_DESC negotiated
  std::uint16_t next_available_ = 0;
  std::uint16_t next_used_ = 0;
  std::optional<std::uint16_t> asked_at_;  // where avail_event stands
  // Up to where used entries were considered for an interrupt. Not saved: pushing and considering are one
  // step under the device's lock.
  std::uint16_t signalled_ = 0;
};

}  // namespace pollux::vmm
