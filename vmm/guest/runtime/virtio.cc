#include "vmm/guest/runtime/virtio.h"

#include "vmm/guest/runtime/guest.h"

namespace pollux::guest {
namespace {

constexpr std::uint32_t kMagic = 0x74726976;
constexpr std::uint32_t kVersion = 2;

// 4.2.2, table 4.1
enum Register : std::uint64_t {
  kMagicValue = 0x000,
  kVersionNumber = 0x004,
  kDeviceId = 0x008,
  kDeviceFeatures = 0x010,
  kDeviceFeaturesSel = 0x014,
  kDriverFeatures = 0x020,
  kDriverFeaturesSel = 0x024,
  kQueueSel = 0x030,
  kQueueNumMax = 0x034,
  kQueueNum = 0x038,
  kQueueReady = 0x044,
  kQueueNotify = 0x050,
  kStatus = 0x070,
  kQueueDescriptors = 0x080,
  kQueueDriver = 0x090,
  kQueueDevice = 0x0a0,
};

// 2.1
constexpr std::uint32_t kAcknowledge = 1, kDriver = 2, kDriverOk = 4, kFeaturesOk = 8;
constexpr std::uint64_t kVersion1 = std::uint64_t{1} << 32;

constexpr std::uint16_t kNext = 1;  // descriptor flag

void barrier() { asm volatile("" : : : "memory"); }

// The type in a slot; 0 when it is empty, and all after it are.
std::uint32_t type_at(std::uint32_t slot) {
  const std::uint64_t window = guest_abi::virtio_window(slot);
  if (load_register<std::uint32_t>(window + kMagicValue) != kMagic) return 0;
  if (load_register<std::uint32_t>(window + kVersionNumber) != kVersion) return 0;
  return load_register<std::uint32_t>(window + kDeviceId);
}

}  // namespace

unsigned VirtioDevice::count(VirtioType type) {
  unsigned found = 0;
  for (std::uint32_t slot = 0; slot < guest_abi::kMaxVirtioSlots; ++slot) {
    const std::uint32_t present = type_at(slot);
    if (present == 0) break;
    if (present == static_cast<std::uint32_t>(type)) ++found;
  }
  return found;
}

VirtioDevice::VirtioDevice(VirtioType type, unsigned index, std::uint64_t wanted_features) {
  for (unsigned skipped = 0;; ++slot_) {
    const std::uint32_t present = slot_ < guest_abi::kMaxVirtioSlots ? type_at(slot_) : 0;
    require(present != 0, "no such virtio device");
    if (present == static_cast<std::uint32_t>(type) && skipped++ == index) break;
  }
  window_ = guest_abi::virtio_window(slot_);

  // 3.1.1
  write(kStatus, 0);
  write(kStatus, kAcknowledge);
  write(kStatus, kAcknowledge | kDriver);
  write(kDeviceFeaturesSel, 0);
  std::uint64_t offered = read(kDeviceFeatures);
  write(kDeviceFeaturesSel, 1);
  offered |= std::uint64_t{read(kDeviceFeatures)} << 32;
  features_ = offered & (wanted_features | kVersion1);
  write(kDriverFeaturesSel, 0);
  write(kDriverFeatures, static_cast<std::uint32_t>(features_));
  write(kDriverFeaturesSel, 1);
  write(kDriverFeatures, static_cast<std::uint32_t>(features_ >> 32));
  write(kStatus, kAcknowledge | kDriver | kFeaturesOk);
  require((read(kStatus) & kFeaturesOk) != 0, "virtio device refuses its features");
}

void VirtioDevice::start() { write(kStatus, kAcknowledge | kDriver | kFeaturesOk | kDriverOk); }

Virtqueue::Virtqueue(VirtioDevice& device, std::uint32_t index, std::uint16_t size)
    : device_(device), index_(index), size_(size) {
  device.write(kQueueSel, index);
  require(size <= device.read(kQueueNumMax), "virtqueue too large");
  // One allocation each: every part begins on a page.
  descriptors_ = static_cast<Descriptor*>(allocate_pages(size * sizeof(Descriptor)));
  available_ = static_cast<volatile std::uint16_t*>(allocate_pages(6 + 2 * std::size_t{size}));
  auto* used = static_cast<std::uint8_t*>(allocate_pages(6 + sizeof(Used) * size));
  used_index_ = reinterpret_cast<volatile std::uint16_t*>(used + 2);
  used_ring_ = reinterpret_cast<volatile Used*>(used + 4);

  const auto set_address = [&](std::uint64_t offset, const volatile void* part) {
    const auto address = reinterpret_cast<std::uint64_t>(part);
    device.write(offset, static_cast<std::uint32_t>(address));
    device.write(offset + 4, static_cast<std::uint32_t>(address >> 32));
  };
  device.write(kQueueNum, size);
  set_address(kQueueDescriptors, descriptors_);
  set_address(kQueueDriver, available_);
  set_address(kQueueDevice, used);
  device.write(kQueueReady, 1);
}

void Virtqueue::describe(std::uint16_t descriptor, const void* buffer, std::uint32_t bytes,
                         std::uint16_t flags) {
  descriptors_[descriptor] = {reinterpret_cast<std::uint64_t>(buffer), bytes, flags, 0};
}

void Virtqueue::chain(std::uint16_t descriptor, std::uint16_t next) {
  descriptors_[descriptor].flags |= kNext;
  descriptors_[descriptor].next = next;
}

void Virtqueue::offer(std::uint16_t head) {
  available_[2 + next_available_ % size_] = head;
  barrier();  // the ring before its index
  available_[1] = ++next_available_;
}

void Virtqueue::announce() {
  if (announced_ == next_available_) return;
  announced_ = next_available_;
  barrier();
  device_.write(kQueueNotify, index_);
}

bool Virtqueue::take(Used& used) {
  if (*used_index_ == next_used_) return false;
  barrier();
  const volatile Used& entry = used_ring_[next_used_ % size_];
  used = {entry.head, entry.written};
  ++next_used_;
  return true;
}

}  // namespace pollux::guest
