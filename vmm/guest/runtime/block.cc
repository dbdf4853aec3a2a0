#include "vmm/guest/runtime/block.h"

#include "vmm/guest/runtime/guest.h"

namespace pollux::guest {
namespace {

constexpr std::uint64_t kFlushFeature = std::uint64_t{1} << 9;
constexpr std::uint16_t kQueueSize = 128;  // at least three descriptors for each slot
constexpr std::uint8_t kOk = 0;
static_assert(BlockDevice::kMaxInFlight * 3 <= kQueueSize);

}  // namespace

BlockDevice::BlockDevice(unsigned index)
    : device_(VirtioType::kBlock, index, kFlushFeature), queue_(device_, 0, kQueueSize) {
  sectors_ = device_.config<std::uint32_t>(0) | std::uint64_t{device_.config<std::uint32_t>(4)} << 32;
  slots_ = static_cast<Slot*>(allocate_pages(kMaxInFlight * sizeof(Slot)));
  for (unsigned i = 0; i < kMaxInFlight; ++i) free_[free_count_++] = static_cast<std::uint16_t>(i);
  device_.start();
}

void BlockDevice::submit(BlockRequest& request) {
  require(request.bytes <= kMaxTransfer && request.bytes % kSectorBytes == 0,
          "block request of a bad length");
  while (free_count_ == 0) reap();
  const std::uint16_t slot = free_[--free_count_];
  request.done = request.failed = false;
  request.attempts = 0;
  slots_[slot].request = &request;
  start(slot);
}

void BlockDevice::start(std::uint16_t slot) {
  Slot& s = slots_[slot];
  BlockRequest& request = *s.request;
  ++request.attempts;
  s.header = {static_cast<std::uint32_t>(request.operation), 0, request.sector};
  s.status = 0xff;
  const auto first = static_cast<std::uint16_t>(slot * 3);
  const auto data = static_cast<std::uint16_t>(first + 1), status = static_cast<std::uint16_t>(first + 2);
  queue_.describe(first, &s.header, sizeof s.header, 0);
  queue_.describe(status, &s.status, sizeof s.status, Virtqueue::kDeviceWrites);
  if (request.bytes > 0) {
    const bool reads = request.operation == BlockRequest::Operation::kRead;
    queue_.describe(data, request.data, request.bytes, reads ? Virtqueue::kDeviceWrites : std::uint16_t{0});
    queue_.chain(first, data);
    queue_.chain(data, status);
  } else {
    queue_.chain(first, status);
  }
  queue_.offer(first);
}

void BlockDevice::reap() {
  queue_.announce();
  (void)take_events(device_.event());  // before looking: what comes later sets it again
  bool found = false;
  for (Virtqueue::Used used{}; queue_.take(used);) {
    found = true;
    const auto slot = static_cast<std::uint16_t>(used.head / 3);
    require(slot < kMaxInFlight && slots_[slot].request != nullptr, "disk completed no request");
    Slot& s = slots_[slot];
    const std::uint8_t status = *const_cast<volatile std::uint8_t*>(&s.status);
    if (status == guest_abi::kBlockUncertain && s.request->attempts < kMaxAttempts) {
      ++repeated_;
      start(slot);
      continue;
    }
    s.request->failed = status != kOk;
    s.request->done = true;
    s.request = nullptr;
    free_[free_count_++] = slot;
  }
  queue_.announce();
  if (!found) (void)wait_for_events(device_.event());
}

void BlockDevice::wait(BlockRequest& request) {
  while (!request.done) reap();
}

bool BlockDevice::transfer(BlockRequest::Operation operation, std::uint64_t sector, std::uint8_t* data,
                           std::uint64_t bytes) {
  require(bytes % kSectorBytes == 0, "disk access of a bad length");
  if (sector > sectors_ || bytes / kSectorBytes > sectors_ - sector) return false;
  constexpr unsigned kAtOnce = 8;
  BlockRequest requests[kAtOnce];
  bool good = true;
  while (bytes > 0 && good) {
    unsigned started = 0;
    for (; started < kAtOnce && bytes > 0; ++started) {
      const std::uint64_t piece = bytes < kMaxTransfer ? bytes : kMaxTransfer;
      requests[started] = {operation, sector, data, static_cast<std::uint32_t>(piece)};
      submit(requests[started]);
      sector += piece / kSectorBytes;
      data += piece;
      bytes -= piece;
    }
    for (unsigned i = 0; i < started; ++i) {
      wait(requests[i]);
      good = good && !requests[i].failed;
    }
  }
  return good;
}

bool BlockDevice::read(std::uint64_t sector, void* into, std::uint64_t bytes) {
  return transfer(BlockRequest::Operation::kRead, sector, static_cast<std::uint8_t*>(into), bytes);
}

bool BlockDevice::write(std::uint64_t sector, const void* from, std::uint64_t bytes) {
  auto* data = const_cast<std::uint8_t*>(static_cast<const std::uint8_t*>(from));
  return transfer(BlockRequest::Operation::kWrite, sector, data, bytes);
}

bool BlockDevice::flush() {
  if (!device_.has(kFlushFeature)) return true;
  BlockRequest request;
  request.operation = BlockRequest::Operation::kFlush;
  submit(request);
  wait(request);
  return !request.failed;
}

}  // namespace pollux::guest
