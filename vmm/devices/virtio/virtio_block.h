// virtio-blk (virtio 1.2, 5.2): a disk behind the output gate.
//
// A request is taken off the queue, checked and, if it writes, copied out under the device lock; the gate's
// operation runs without the lock; the result is put into guest memory under the lock again. So pausing the
// machine never waits for a disk. A request between the two is *outstanding*: its head is saved, and a
// restored device issues it again (rule P7), which is harmless because every disk operation can be repeated.
#pragma once

#include <array>
#include <deque>
#include <optional>
#include <string>

#include "vmm/devices/virtio/virtio_function.h"
#include "vmm/gates/output_gate.h"
#include "vmm/machine/machine_config.h"

namespace pollux::vmm {

class VirtioBlock final : public VirtioFunction {
 public:
  static constexpr std::uint16_t kQueueSize = 128;
  // Limits told to the driver; together they bound a request, and so the bounce buffer.
  static constexpr std::uint32_t kMaxSegments = kQueueSize - 2;  // header and status take a descriptor each
  static constexpr std::uint32_t kMaxSegmentBytes = 32 * 1024;
  static constexpr std::size_t kMaxRequestBytes = std::size_t{kMaxSegments} * kMaxSegmentBytes;
  static constexpr std::uint32_t kMaxDiscardRanges = 16;
  static constexpr std::uint64_t kMaxDiscardBytes = std::uint64_t{1} << 30;  // of one range
  // At most one at a time inside the gate; more are possible only in a state saved by a later version.
  static constexpr std::size_t kMaxOutstanding = kQueueSize;
  static constexpr unsigned kRequestsPerServe = kQueueSize;
  static constexpr std::size_t kIdBytes = 20;  // VIRTIO_BLK_T_GET_ID

  VirtioBlock(DiskIndex index, const DiskConfig& config, OutputGate& output);

  [[nodiscard]] DeviceType type() const override { return DeviceType::kBlock; }
  [[nodiscard]] std::uint64_t features() const override;
  [[nodiscard]] std::span<const std::uint16_t> queue_sizes() const override;
  [[nodiscard]] ByteView config() const override { return config_space_; }
  [[nodiscard]] bool serve(QueueIndex index) override;
  void reset() override;
  void save(schema::VirtioDeviceState::Function::Builder state) const override;
  void restore(schema::VirtioDeviceState::Function::Reader state) override;

 private:
  struct Range;
  struct Request;
  enum class Status : std::uint8_t;

  [[nodiscard]] std::optional<Chain> next_request();
  void serve_request(const Chain& chain);
  void parse(const Chain& chain, Request& request);
  void parse_transfer(Request& request) const;
  void parse_ranges(const Chain& chain, Request& request) const;
  [[nodiscard]] Status perform(const Request& request);
  [[nodiscard]] bool write_zeroes(const Range& range);
  void complete(const Chain& chain, const Request& request, Status status);
  [[nodiscard]] bool within_disk(std::uint64_t sector, std::uint64_t bytes) const;

  DiskIndex index_;
  DiskConfig disk_;
  OutputGate& output_;
  std::array<std::byte, 60> config_space_{};

  bool serving_ = false;          // a thread is in serve(), perhaps inside the gate
  std::uint64_t generation_ = 0;  // of the driver's set-up: a completion of an older one is dropped
  std::optional<std::uint16_t> in_gate_;
  std::deque<std::uint16_t> reissue_;  // restored, to be issued before anything new
  Bytes bounce_;
};

}  // namespace pollux::vmm
