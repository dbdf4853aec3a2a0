#include "vmm/devices/virtio/virtio_mmio.h"

#include <kj/exception.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <cstring>
#include <mutex>

#include "base/error.h"

namespace pollux::vmm {
namespace {

constexpr std::uint32_t kMagic = 0x74726976;  // "virt"
constexpr std::uint32_t kVersion = 2;
constexpr std::uint32_t kVendor = 0x58554c50;   // "PLUX"
constexpr std::uint32_t kNoSharedMemory = ~0u;  // the length of a region that does not exist (4.2.2.1)

// 4.2.2, table 4.1
enum Register : std::uint64_t {
  kMagicValue = 0x000,
  kVersionNumber = 0x004,
  kDeviceId = 0x008,
  kVendorId = 0x00c,
  kDeviceFeatures = 0x010,
  kDeviceFeaturesSel = 0x014,
  kDriverFeatures = 0x020,
  kDriverFeaturesSel = 0x024,
  kQueueSel = 0x030,
  kQueueNumMax = 0x034,
  kQueueNum = 0x038,
  kQueueReady = 0x044,
  kQueueNotify = kVirtioQueueNotify,
  kInterruptStatus = 0x060,
  kInterruptAck = 0x064,
  kStatus = 0x070,
  kQueueDescLow = 0x080,
  kQueueDescHigh = 0x084,
  kQueueDriverLow = 0x090,
  kQueueDriverHigh = 0x094,
  kQueueDeviceLow = 0x0a0,
  kQueueDeviceHigh = 0x0a4,
  kShmLenLow = 0x0b0,
  kShmLenHigh = 0x0b4,
  kShmBaseLow = 0x0b8,
  kShmBaseHigh = 0x0bc,
  kConfigGeneration = 0x0fc,
  kConfig = 0x100,
};

// 2.1
constexpr std::uint32_t kAcknowledge = 1;
constexpr std::uint32_t kDriver = 2;
constexpr std::uint32_t kDriverOk = 4;
constexpr std::uint32_t kFeaturesOk = 8;
constexpr std::uint32_t kNeedsReset = 64;
constexpr std::uint32_t kFailed = 128;
constexpr std::uint32_t kDriverBits = kAcknowledge | kDriver | kDriverOk | kFeaturesOk | kFailed;

// Section 6
constexpr std::uint64_t kIndirectDesc = feature_bit(28);
constexpr std::uint64_t kEventIdx = feature_bit(29);
constexpr std::uint64_t kVersion1 = feature_bit(32);

// 4.2.2: bits of InterruptStatus
constexpr std::uint32_t kUsedBuffer = 1;
constexpr std::uint32_t kConfigChange = 2;

// A driver that breaks a rule, resets and breaks it again may not fill the log.
constexpr unsigned kMaxLoggedViolations = 16;

std::uint64_t with_half(std::uint64_t whole, bool high, std::uint32_t half) {
  const unsigned shift = high ? 32 : 0;
  return (whole & ~(std::uint64_t{0xffff'ffff} << shift)) | (std::uint64_t{half} << shift);
}

[[noreturn]] void bad_state(const std::string& name, const std::string& why) {
  throw Error("restore " + name + ": " + why);
}

}  // namespace

VirtioMmio::VirtioMmio(std::string name, std::unique_ptr<VirtioFunction> function, GuestMemory& memory,
                       InterruptLine& interrupt, EventLoop* loop)
    : name_(std::move(name)),
      function_(std::move(function)),
      memory_(memory),
      interrupt_(interrupt),
      loop_(loop) {
  for (const std::uint16_t size : function_->queue_sizes()) queues_.emplace_back(memory, size);
  POLLUX_ASSERT(queues_.size() <= kMaxVirtioQueues);
  function_->attach(*this);
}

VirtioMmio::~VirtioMmio() = default;

std::uint64_t VirtioMmio::offered_features() const {
  return function_->features() | kVersion1 | kEventIdx | kIndirectDesc;
}

bool VirtioMmio::negotiated(std::uint64_t feature) const {
  return (status_ & kFeaturesOk) && (driver_features_ & feature) == feature;
}

bool VirtioMmio::live(QueueIndex index) const {
  return !retired_ && (status_ & kDriverOk) && !(status_ & kNeedsReset) && queues_[index.value].ready();
}

Queue* VirtioMmio::selected_queue() {
  return queue_select_ < queues_.size() ? &queues_[queue_select_] : nullptr;
}

// --- Registers ---

// 4.2.2.2: control registers are accessed as aligned 32-bit words only. Anything else reads as zero.
void VirtioMmio::read(std::uint64_t offset, MutableByteView into) {
  std::fill(into.begin(), into.end(), std::byte{0});
  if (offset >= kConfig) {
    const ByteView config = function_->config();  // constant: no lock
    const std::uint64_t start = offset - kConfig;
    if (start >= config.size()) return;
    std::memcpy(into.data(), config.data() + start,
                std::min<std::uint64_t>(into.size(), config.size() - start));
    return;
  }
  if (into.size() != sizeof(std::uint32_t) || offset % sizeof(std::uint32_t) != 0) return;
  const std::lock_guard guard(lock_);
  const std::uint32_t value = read_register(offset);
  std::memcpy(into.data(), &value, sizeof value);
}

void VirtioMmio::write(std::uint64_t offset, ByteView from) {
  // No device of ours has a writable configuration field.
  if (from.size() != sizeof(std::uint32_t) || offset % sizeof(std::uint32_t) != 0 || offset >= kConfig)
    return;
  std::uint32_t value = 0;
  std::memcpy(&value, from.data(), sizeof value);
  if (offset == kQueueNotify) return notify({value});
  bool started = false;
  {
    const std::lock_guard guard(lock_);
    const std::uint32_t before = status_;
    write_register(offset, value);
    started = (status_ & ~before & kDriverOk) != 0;
  }
  // What the driver announced before it was ready is served now (3.1.1, step 8).
  if (started) serve_all();
}

std::uint32_t VirtioMmio::read_register(std::uint64_t offset) const {
  switch (offset) {
    case kMagicValue: return kMagic;
    case kVersionNumber: return kVersion;
    case kDeviceId: return static_cast<std::uint32_t>(function_->type());
    case kVendorId: return kVendor;
    case kDeviceFeatures:
      if (device_features_select_ > 1) return 0;
      return static_cast<std::uint32_t>(offered_features() >> (32 * device_features_select_));
    case kInterruptStatus: return interrupt_status_;
    case kStatus: return status_;
    case kShmLenLow:
    case kShmLenHigh:
    case kShmBaseLow:
    case kShmBaseHigh: return kNoSharedMemory;
    case kConfigGeneration: return 0;  // the configuration never changes
    default: return read_queue_register(offset);
  }
}

std::uint32_t VirtioMmio::read_queue_register(std::uint64_t offset) const {
  if (queue_select_ >= queues_.size()) return 0;
  const Queue& queue = queues_[queue_select_];
  switch (offset) {
    case kQueueNumMax: return queue.max_size();
    case kQueueReady: return queue.ready() ? 1 : 0;
    default: return 0;  // write-only or reserved
  }
}

void VirtioMmio::write_register(std::uint64_t offset, std::uint32_t value) {
  switch (offset) {
    case kDeviceFeaturesSel: device_features_select_ = value; break;
    case kDriverFeaturesSel: driver_features_select_ = value; break;
    case kDriverFeatures: write_driver_features(value); break;
    case kQueueSel: queue_select_ = value; break;
    case kInterruptAck: interrupt_status_ &= ~value; break;
    case kStatus: write_status(value); break;
    default: write_queue_register(offset, value);
  }
}

// 3.1.1: features are fixed once FEATURES_OK is set.
void VirtioMmio::write_driver_features(std::uint32_t value) {
  if ((status_ & kFeaturesOk) || driver_features_select_ > 1) return;
  driver_features_ = with_half(driver_features_, driver_features_select_ == 1, value);
}

// 2.1.1: the driver adds bits, or writes 0 to reset. A bit it may not set yet stays clear, as it finds by
// reading.
void VirtioMmio::write_status(std::uint32_t value) {
  if (value == 0) return reset();
  const bool acceptable = (driver_features_ & ~offered_features()) == 0 && (driver_features_ & kVersion1);
  std::uint32_t added = value & kDriverBits & ~status_;
  if (!acceptable) added &= ~kFeaturesOk;
  if (!((status_ | added) & kFeaturesOk)) added &= ~kDriverOk;
  status_ |= added;
}

void VirtioMmio::write_queue_register(std::uint64_t offset, std::uint32_t value) {
  Queue* queue = selected_queue();
  if (queue == nullptr || !(status_ & kFeaturesOk) || (status_ & kNeedsReset)) return;
  if (offset == kQueueReady) return set_queue_ready(*queue, value == 1);
  if (queue->ready()) return;  // 4.2.2.2: a ready queue is not changed
  if (offset == kQueueNum) {
    // Zero is as unusable as what does not fit, and found when the queue is made ready.
    queue->set_size(value <= queue->max_size() ? static_cast<std::uint16_t>(value) : std::uint16_t{0});
  } else {
    write_queue_address(offset, value);
  }
}

void VirtioMmio::write_queue_address(std::uint64_t offset, std::uint32_t value) {
  Queue& queue = *selected_queue();
  QueueRegisters registers = queue.registers();
  GuestAddress* address = nullptr;
  switch (offset & ~std::uint64_t{4}) {
    case kQueueDescLow: address = &registers.descriptors; break;
    case kQueueDriverLow: address = &registers.driver; break;
    case kQueueDeviceLow: address = &registers.device; break;
    default: return;
  }
  address->value = with_half(address->value, (offset & 4) != 0, value);
  queue.set_addresses(registers.descriptors, registers.driver, registers.device);
}

void VirtioMmio::set_queue_ready(Queue& queue, bool ready) {
  if (ready == queue.ready()) return;
  if (!ready) {
    queue.disable();
    function_->reset();  // it may hold requests of this queue
    return;
  }
  try {
    queue.enable(negotiated(kEventIdx), negotiated(kIndirectDesc));
  } catch (const DriverError& error) {
    needs_reset(error.what());
  }
}

void VirtioMmio::reset() {
  status_ = 0;
  interrupt_status_ = 0;
  device_features_select_ = 0;
  driver_features_select_ = 0;
  queue_select_ = 0;
  driver_features_ = 0;
  for (Queue& queue : queues_) queue.reset();
  function_->reset();
}

// 2.1.2
void VirtioMmio::needs_reset(const std::string& why) {
  if (++violations_ <= kMaxLoggedViolations)
    spdlog::warn("{}: driver error, device needs reset: {}", name_, why);
  status_ |= kNeedsReset;
  if (status_ & kDriverOk) interrupt(kConfigChange);
}

void VirtioMmio::interrupt(std::uint32_t cause) {
  interrupt_status_ |= cause;
  interrupt_.trigger();
}

void VirtioMmio::signal(QueueIndex index) {
  if (queues_[index.value].take_interrupt_request()) interrupt(kUsedBuffer);
}

// --- Serving queues ---

void VirtioMmio::notify(QueueIndex index) {
  if (index.value >= queues_.size()) return;
  if (loop_ == nullptr) {
    while (serve(index)) {
    }
  } else if (loop_->in_loop_thread()) {
    if (serve(index)) post(index);
  } else {
    post(index);
  }
}

void VirtioMmio::post(QueueIndex index) {
  // Whoever finds no bit set posts for all: at most one task of ours waits in the loop.
  if (posted_.fetch_or(1u << index.value) == 0) loop_->post([this] { serve_posted(); });
}

void VirtioMmio::serve_posted() {
  const std::uint32_t posted = posted_.exchange(0);
  for (std::uint32_t i = 0; i < queues_.size(); ++i) {
    if (posted & (1u << i)) notify({i});
  }
}

void VirtioMmio::serve_all() {
  for (std::uint32_t i = 0; i < queues_.size(); ++i) notify({i});
}

bool VirtioMmio::serve(QueueIndex index) {
  const std::lock_guard guard(lock_);
  if (!live(index)) return false;
  try {
    return function_->serve(index);
  } catch (const DriverError& error) {
    needs_reset(error.what());
  } catch (const std::exception& error) {
    // Not the driver's doing, but its request is lost: it has to start over.
    needs_reset(std::string("internal: ") + error.what());
  }
  return false;
}

void VirtioMmio::unlocked(const std::function<void()>& work) {
  struct Unlock {
    explicit Unlock(DeviceLock& lock) : lock_(lock) { lock_.unlock(); }
    ~Unlock() { lock_.lock(); }
    DeviceLock& lock_;
  };
  const Unlock unlock(lock_);
  work();
}

void VirtioMmio::locked(const std::function<void()>& work) {
  const std::lock_guard guard(lock_);
  if (!retired_) work();
}

void VirtioMmio::retire() {
  retired_ = true;
  lock_.thaw();
  // Waits for whoever found the device alive.
  const std::lock_guard guard(lock_);
}

// --- Saved state ---

void VirtioMmio::save(schema::VirtioDeviceState::Builder state) const {
  POLLUX_ASSERT(lock_.frozen());
  state.setStatus(static_cast<std::uint8_t>(status_));
  state.setInterruptStatus(static_cast<std::uint8_t>(interrupt_status_));
  state.setDeviceFeaturesSelect(device_features_select_);
  state.setDriverFeaturesSelect(driver_features_select_);
  state.setQueueSelect(queue_select_);
  state.setDriverFeatures(driver_features_);
  auto queues = state.initQueues(static_cast<unsigned>(queues_.size()));
  for (unsigned i = 0; i < queues.size(); ++i) {
    const QueueRegisters& registers = queues_[i].registers();
    auto queue = queues[i];
    queue.setSize(registers.size);
    queue.setReady(registers.ready);
    queue.setDescriptors(registers.descriptors.value);
    queue.setDriver(registers.driver.value);
    queue.setDevice(registers.device.value);
    queue.setNextAvailable(queues_[i].next_available());
    queue.setNextUsed(queues_[i].next_used());
    queue.setAskedAt(queues_[i].asked_at() ? *queues_[i].asked_at() + 1u : 0u);
  }
  function_->save(state.getFunction());
}

void VirtioMmio::restore(schema::VirtioDeviceState::Reader state) {
  try {
    restore_registers(state);
    restore_queues(state);
    function_->restore(state.getFunction());
  } catch (const kj::Exception& error) {
    bad_state(name_, error.getDescription().cStr());
  } catch (const DriverError& error) {
    bad_state(name_, error.what());
  }
}

void VirtioMmio::restore_registers(schema::VirtioDeviceState::Reader state) {
  status_ = state.getStatus();
  interrupt_status_ = state.getInterruptStatus();
  device_features_select_ = state.getDeviceFeaturesSelect();
  driver_features_select_ = state.getDriverFeaturesSelect();
  queue_select_ = state.getQueueSelect();
  driver_features_ = state.getDriverFeatures();
  if (status_ & ~(kDriverBits | kNeedsReset)) bad_state(name_, "unknown status bits");
  if ((status_ & kDriverOk) && !(status_ & kFeaturesOk)) bad_state(name_, "driver up without features");
  if (interrupt_status_ & ~(kUsedBuffer | kConfigChange)) bad_state(name_, "unknown interrupt bits");
  const bool acceptable = (driver_features_ & ~offered_features()) == 0 && (driver_features_ & kVersion1);
  if ((status_ & kFeaturesOk) && !acceptable) bad_state(name_, "features not offered by this version");
}

void VirtioMmio::restore_queues(schema::VirtioDeviceState::Reader state) {
  const auto queues = state.getQueues();
  if (queues.size() != queues_.size()) bad_state(name_, "wrong number of queues");
  for (unsigned i = 0; i < queues.size(); ++i) {
    const auto queue = queues[i];
    const QueueRegisters registers{queue.getSize(),
                                   queue.getReady(),
                                   {queue.getDescriptors()},
                                   {queue.getDriver()},
                                   {queue.getDevice()}};
    if (registers.ready && !(status_ & kFeaturesOk)) bad_state(name_, "queue ready without features");
    const std::uint32_t asked_at = queue.getAskedAt();
    if (asked_at > 0x10000) bad_state(name_, "impossible notification index");
    queues_[i].restore(registers, queue.getNextAvailable(), queue.getNextUsed(),
                       asked_at == 0 ? std::nullopt : std::optional(static_cast<std::uint16_t>(asked_at - 1)),
                       negotiated(kEventIdx), negotiated(kIndirectDesc));
  }
}

void VirtioMmio::resume_after_restore() {
  locked([this] {
    if (interrupt_status_ != 0) interrupt_.trigger();
  });
  serve_all();
}

}  // namespace pollux::vmm
