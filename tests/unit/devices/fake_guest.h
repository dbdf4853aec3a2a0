// A guest's driver and a host's gates, for tests of virtio devices without a machine.
#pragma once

#include <capnp/message.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "tests/support/eventually.h"
#include "vmm/devices/virtio/virtio_mmio.h"
#include "vmm/gates/input_gate.h"
#include "vmm/gates/output_gate.h"

namespace pollux::vmm::testing {

inline constexpr std::uint64_t kGuestBytes = 16 << 20;

inline constexpr std::uint16_t kNext = 1;
inline constexpr std::uint16_t kWritable = 2;
inline constexpr std::uint16_t kIndirect = 4;

inline constexpr std::uint64_t kIndirectFeature = feature_bit(28);
inline constexpr std::uint64_t kEventIndexFeature = feature_bit(29);
inline constexpr std::uint64_t kVersion1Feature = feature_bit(32);

inline Bytes bytes_from(const std::string& text) {
  const auto view = std::as_bytes(std::span(text));
  return Bytes(view.begin(), view.end());
}

// Bytes that differ from sector to sector and from seed to seed.
inline Bytes pattern(std::size_t length, unsigned seed) {
  Bytes bytes(length);
  for (std::size_t i = 0; i < length; ++i)
    bytes[i] = static_cast<std::byte>((i * 31 + (i >> 9) * 7 + seed) & 0xff);
  return bytes;
}

using pollux::testing::eventually;

struct Descriptor {
  std::uint64_t address = 0;
  std::uint32_t length = 0;
  std::uint16_t flags = 0;
  std::uint16_t next = 0;
};

struct Buffer {
  std::uint64_t address = 0;
  std::uint32_t length = 0;
  bool writable = false;
};

// One split virtqueue, the driver's side. Writes whatever it is told, valid or not.
class Ring {
 public:
  Ring(GuestMemory& memory, std::uint64_t base, std::uint16_t size, std::uint16_t start = 0)
      : memory_(&memory), base_(base), size_(size), next_available_(start), next_used_(start) {
    const Bytes zeros(0x4000);
    put(base_, zeros.data(), zeros.size());
    set_available_index(start);
    store(used() + 2, start);
  }

  [[nodiscard]] std::uint64_t descriptors() const { return base_; }
  [[nodiscard]] std::uint64_t available() const { return base_ + 0x2000; }
  [[nodiscard]] std::uint64_t used() const { return base_ + 0x3000; }
  [[nodiscard]] std::uint16_t size() const { return size_; }

  void set_descriptor(std::uint16_t index, const Descriptor& descriptor) {
    put(base_ + index * sizeof descriptor, &descriptor, sizeof descriptor);
  }
  void make_available(std::uint16_t head) {
    store(available() + 4 + 2 * (next_available_ % size_), head);
    set_available_index(++next_available_);
  }
  // A chain of the buffers in the next free descriptors (the oldest are assumed to be done with); its head.
  std::uint16_t add(const std::vector<Buffer>& buffers) {
    const std::uint16_t head = next_descriptor_;
    for (std::size_t i = 0; i < buffers.size(); ++i) {
      const std::uint16_t index = next_descriptor_;
      next_descriptor_ = static_cast<std::uint16_t>((next_descriptor_ + 1) % size_);
      const auto flags = (buffers[i].writable ? kWritable : 0) | (i + 1 < buffers.size() ? kNext : 0);
      set_descriptor(index, {buffers[i].address, buffers[i].length, static_cast<std::uint16_t>(flags),
                             next_descriptor_});
    }
    make_available(head);
    return head;
  }
  std::optional<UsedEntry> take_used() {
    if (load(used() + 2) == next_used_) return std::nullopt;
    std::array<std::uint32_t, 2> element{};
    get(used() + 4 + 8 * (next_used_ % size_), element.data(), sizeof element);
    ++next_used_;
    return UsedEntry{static_cast<std::uint16_t>(element[0]), element[1]};
  }

  void set_available_index(std::uint16_t index) { store(available() + 2, index); }
  void set_flags(std::uint16_t flags) { store(available(), flags); }
  void set_used_event(std::uint16_t index) { store(available() + 4 + 2 * size_, index); }
  [[nodiscard]] std::uint16_t available_event() const { return load(used() + 4 + 8 * size_); }

 private:
  void put(std::uint64_t address, const void* from, std::size_t length) {
    POLLUX_ASSERT(memory_->write({address}, ByteView(static_cast<const std::byte*>(from), length)));
  }
  void get(std::uint64_t address, void* into, std::size_t length) const {
    POLLUX_ASSERT(memory_->read({address}, MutableByteView(static_cast<std::byte*>(into), length)));
  }
  [[nodiscard]] std::uint16_t load(std::uint64_t address) const {
    auto* word = const_cast<std::byte*>(memory_->view({address}, 2)->data());
    return std::atomic_ref(*reinterpret_cast<std::uint16_t*>(word)).load();
  }
  void store(std::uint64_t address, std::uint16_t value) {
    std::byte* word = memory_->writable_view({address}, 2)->data();
    std::atomic_ref(*reinterpret_cast<std::uint16_t*>(word)).store(value);
  }

  GuestMemory* memory_;
  std::uint64_t base_;
  std::uint16_t size_;
  std::uint16_t next_available_;
  std::uint16_t next_used_;
  std::uint16_t next_descriptor_ = 0;
};

// Drives a device through its registers as Linux's virtio_mmio does, inside its own part of guest memory.
class FakeDriver {
 public:
  static constexpr std::uint64_t kRings = 0x10000;
  static constexpr std::uint64_t kRingSpace = 0x4000;
  static constexpr std::uint64_t kHeap = 0x100000;

  FakeDriver(VirtioMmio& device, GuestMemory& memory) : device_(device), memory_(memory) {}

  std::uint32_t get(std::uint64_t offset) {
    std::uint32_t value = 0;
    device_.read(offset, mutable_bytes_of(value));
    return value;
  }
  void set(std::uint64_t offset, std::uint32_t value) { device_.write(offset, bytes_of(value)); }
  [[nodiscard]] std::uint32_t status() { return get(0x070); }
  [[nodiscard]] bool needs_reset() { return (status() & 64) != 0; }

  std::uint64_t offered() {
    set(0x014, 0);
    const std::uint64_t low = get(0x010);
    set(0x014, 1);
    return low | (std::uint64_t{get(0x010)} << 32);
  }
  void negotiate(std::uint64_t features) {
    set(0x070, 1);
    set(0x070, 1 | 2);
    set(0x024, 0);
    set(0x020, static_cast<std::uint32_t>(features));
    set(0x024, 1);
    set(0x020, static_cast<std::uint32_t>(features >> 32));
    set(0x070, 1 | 2 | 8);
  }
  void set_queue_registers(std::uint32_t index, std::uint32_t size, std::uint64_t descriptors,
                           std::uint64_t available, std::uint64_t used) {
    set(0x030, index);
    set(0x038, size);
    set(0x080, static_cast<std::uint32_t>(descriptors));
    set(0x084, static_cast<std::uint32_t>(descriptors >> 32));
    set(0x090, static_cast<std::uint32_t>(available));
    set(0x094, static_cast<std::uint32_t>(available >> 32));
    set(0x0a0, static_cast<std::uint32_t>(used));
    set(0x0a4, static_cast<std::uint32_t>(used >> 32));
    set(0x044, 1);
  }
  void set_up_queues(std::uint16_t size) {
    rings_.clear();
    for (std::uint32_t i = 0; i < device_.queue_count(); ++i) {
      rings_.emplace_back(memory_, kRings + i * kRingSpace, size);
      set_queue_registers(i, size, rings_[i].descriptors(), rings_[i].available(), rings_[i].used());
    }
  }
  // From reset to DRIVER_OK.
  void start(std::uint64_t features = 0, std::uint16_t size = 16) {
    set(0x070, 0);
    heap_ = kHeap;
    negotiate(features | kVersion1Feature);
    set_up_queues(size);
    set(0x070, 1 | 2 | 4 | 8);
  }

  Ring& ring(std::uint32_t queue = 0) { return rings_.at(queue); }
  void kick(std::uint32_t queue = 0) { set(kVirtioQueueNotify, queue); }

  std::uint64_t allocate(std::size_t length) {
    const std::uint64_t address = heap_;
    heap_ += (length + 63) / 64 * 64;
    POLLUX_ASSERT(heap_ <= memory_.size());
    return address;
  }
  Buffer output(ByteView bytes) {
    const std::uint64_t address = allocate(bytes.size());
    POLLUX_ASSERT(memory_.write({address}, bytes));
    return {address, static_cast<std::uint32_t>(bytes.size()), false};
  }
  Buffer input(std::size_t length) { return {allocate(length), static_cast<std::uint32_t>(length), true}; }
  Bytes contents(const Buffer& buffer) {
    Bytes bytes(buffer.length);
    POLLUX_ASSERT(memory_.read({buffer.address}, bytes));
    return bytes;
  }

 private:
  VirtioMmio& device_;
  GuestMemory& memory_;
  std::vector<Ring> rings_;
  std::uint64_t heap_ = kHeap;
};

// What a device saves.
class SavedDevice {
 public:
  explicit SavedDevice(VirtioMmio& device) : message_(std::make_unique<capnp::MallocMessageBuilder>()) {
    device.freeze();
    save(device);
    device.thaw();
  }
  struct AlreadyFrozen {};
  SavedDevice(VirtioMmio& device, AlreadyFrozen) : message_(std::make_unique<capnp::MallocMessageBuilder>()) {
    save(device);
  }
  [[nodiscard]] schema::VirtioDeviceState::Builder state() {
    return message_->getRoot<schema::VirtioDeviceState>();
  }

 private:
  void save(const VirtioMmio& device) { device.save(message_->initRoot<schema::VirtioDeviceState>()); }
  std::unique_ptr<capnp::MallocMessageBuilder> message_;
};

class CountingLine final : public InterruptLine {
 public:
  void trigger() override { ++count; }
  std::atomic<unsigned> count = 0;
};

// A gate with one disk in memory, whose operations can be made to wait or fail.
class FakeOutput final : public OutputGate {
 public:
  explicit FakeOutput(std::size_t disk_bytes = 0) : disk_(disk_bytes) {}

  [[nodiscard]] bool transmit(NicIndex, ByteView frame) override {
    const std::lock_guard lock(mutex_);
    if (room_ == 0) return false;
    --room_;
    frames_.emplace_back(frame.begin(), frame.end());
    return true;
  }
  void on_room(std::function<void()> callback) override { on_room_ = std::move(callback); }
  void console(ConsoleIndex console, ByteView bytes) override {
    const std::lock_guard lock(mutex_);
    if (console == kVirtioConsole) console_.insert(console_.end(), bytes.begin(), bytes.end());
  }
  [[nodiscard]] bool read(DiskIndex, std::uint64_t offset, MutableByteView into) override {
    return operate("read",
                   [&] { std::copy_n(disk_.begin() + std::ptrdiff_t(offset), into.size(), into.begin()); });
  }
  [[nodiscard]] bool write(DiskIndex, std::uint64_t offset, ByteView from) override {
    return operate("write",
                   [&] { std::copy(from.begin(), from.end(), disk_.begin() + std::ptrdiff_t(offset)); });
  }
  [[nodiscard]] bool discard(DiskIndex, std::uint64_t offset, std::uint64_t length) override {
    return operate("discard",
                   [&] { std::fill_n(disk_.begin() + std::ptrdiff_t(offset), length, std::byte{0}); });
  }
  [[nodiscard]] bool flush(DiskIndex) override {
    return operate("flush", [] {});
  }

  void hold(bool held) {
    const std::lock_guard lock(mutex_);
    held_ = held;
    changed_.notify_all();
  }
  [[nodiscard]] bool waiting() {
    const std::lock_guard lock(mutex_);
    return waiting_ > 0;
  }
  void fail(bool failing) {
    const std::lock_guard lock(mutex_);
    failing_ = failing;
  }
  void set_room(std::size_t frames) {
    {
      const std::lock_guard lock(mutex_);
      room_ = frames;
    }
    if (on_room_) on_room_();
  }
  [[nodiscard]] unsigned calls(const std::string& operation) {
    const std::lock_guard lock(mutex_);
    return calls_[operation];
  }
  [[nodiscard]] std::vector<Bytes> frames() {
    const std::lock_guard lock(mutex_);
    return frames_;
  }
  [[nodiscard]] Bytes console_output() {
    const std::lock_guard lock(mutex_);
    return console_;
  }
  [[nodiscard]] Bytes disk(std::size_t offset, std::size_t length) {
    const std::lock_guard lock(mutex_);
    const auto start = disk_.begin() + static_cast<std::ptrdiff_t>(offset);
    return Bytes(start, start + static_cast<std::ptrdiff_t>(length));
  }

 private:
  bool operate(const std::string& name, const std::function<void()>& work) {
    std::unique_lock lock(mutex_);
    ++waiting_;
    changed_.wait(lock, [this] { return !held_; });
    --waiting_;
    ++calls_[name];
    if (failing_) return false;
    work();
    return true;
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  Bytes disk_;
  std::map<std::string, unsigned> calls_;
  std::vector<Bytes> frames_;
  Bytes console_;
  std::function<void()> on_room_;
  std::size_t room_ = ~std::size_t{0};
  unsigned waiting_ = 0;
  bool held_ = false;
  bool failing_ = false;
};

class FakeInput final : public InputGate {
 public:
  void attach(ArrivalSink&) override {}
  void offer(Arrival) override {}
  [[nodiscard]] std::chrono::nanoseconds wall_clock() override { return {}; }
  void entropy(MutableByteView into) override {
    for (std::byte& byte : into) byte = static_cast<std::byte>(++last_);
  }

 private:
  unsigned char last_ = 0;
};

}  // namespace pollux::vmm::testing
