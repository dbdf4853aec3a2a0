// Disks: virtio-blk (virtio 1.2, 5.2).
#pragma once

#include <cstdint>

#include "vmm/guest/runtime/virtio.h"

namespace pollux::guest {

inline constexpr std::uint64_t kSectorBytes = 512;

// One request; the caller's, with its data, until done. Requests under way at the same time may be done in
// any order.
struct BlockRequest {
  enum class Operation : std::uint32_t { kRead = 0, kWrite = 1, kFlush = 4 };
  Operation operation = Operation::kRead;
  std::uint64_t sector = 0;
  void* data = nullptr;
  std::uint32_t bytes = 0;  // a multiple of kSectorBytes, up to BlockDevice::kMaxTransfer; 0 for a flush

  bool done = false;
  bool failed = false;  // once done: the device reported an error
  unsigned attempts = 0;
};

// A request that completes as UNCERTAIN (guest_abi::kBlockUncertain) is repeated, without the caller
// noticing.
class BlockDevice {
 public:
  static constexpr unsigned kMaxInFlight = 32;
  static constexpr std::uint32_t kMaxTransfer = 32 * 1024;
  // One for each promotion a request sees; more than these are an error.
  static constexpr unsigned kMaxAttempts = 16;

  explicit BlockDevice(unsigned index);

  [[nodiscard]] std::uint64_t sectors() const { return sectors_; }
  [[nodiscard]] std::uint64_t repeated() const { return repeated_; }

  // Starts a request; waits for another one when kMaxInFlight are under way.
  void submit(BlockRequest& request);
  void wait(BlockRequest& request);

  // Any length; several requests at a time. False: an error.
  [[nodiscard]] bool read(std::uint64_t sector, void* into, std::uint64_t bytes);
  [[nodiscard]] bool write(std::uint64_t sector, const void* from, std::uint64_t bytes);
  // True: every write completed before is durable.
  [[nodiscard]] bool flush();

 private:
  struct Header {
    std::uint32_t type;
    std::uint32_t reserved;
    std::uint64_t sector;
  };
  // Descriptors 3n to 3n+2 are slot n's: header, data, status.
  struct Slot {
    Header header;
    std::uint8_t status;
    BlockRequest* request;
  };

  [[nodiscard]] bool transfer(BlockRequest::Operation operation, std::uint64_t sector, std::uint8_t* data,
                              std::uint64_t bytes);
  void start(std::uint16_t slot);
  // Completes what the device is done with; nothing was: waits for it.
  void reap();

  VirtioDevice device_;
  Virtqueue queue_;
  std::uint64_t sectors_ = 0;
  std::uint64_t repeated_ = 0;
  Slot* slots_;
  std::uint16_t free_[kMaxInFlight];
  unsigned free_count_ = 0;
};

}  // namespace pollux::guest
