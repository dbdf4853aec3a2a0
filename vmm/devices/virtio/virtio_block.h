// virtio-blk (virtio 1.2, 5.2): a disk behind the output gate.
//
// A request is taken off the queue, checked and, if it writes, copied out under the device lock; the gate's
// operation runs without the lock; the result is put into guest memory under the lock again. So pausing the
// machine never waits for a disk. A request between the two is *outstanding*: its head is saved, and a
// restored device issues it again (rule P7), which is harmless because every disk operation can be repeated.
//
// A *deferring* device (of a deterministic machine) only takes requests: a BlockExecutor performs them, in the order
// they were taken, and the machine says when each is completed, and with which status. Whatever the status says, the
// request is performed once: so the images of two machines that take the same requests stay alike.
#pragma once

#include <array>
#include <atomic>
#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "vmm/devices/virtio/virtio_function.h"
#include "vmm/gates/output_gate.h"
#include "vmm/machine/machine_config.h"

namespace pollux::vmm {

// Performs the requests of a deferring disk.
class BlockExecutor {
 public:
  virtual ~BlockExecutor() = default;
  // Calls `perform` once, on any thread, after all that were submitted before have returned; at the latest when it is
  // destroyed it lets go of it.
  virtual void submit(std::function<void()> perform) = 0;
};

// How the request taken off the queue with this head ended.
struct BlockCompletion {
  std::uint16_t head = 0;
  std::uint8_t status = 0;  // virtio 1.2, 5.2.6; or guest_abi::kBlockUncertain
  bool operator==(const BlockCompletion&) const = default;
};
[[nodiscard]] bool is_block_status(std::uint8_t status);

class VirtioBlock final : public VirtioFunction {
 public:
  static constexpr std::uint16_t kQueueSize = 128;
  // Limits told to the driver; together they bound a request, and so the bounce buffer.
  static constexpr std::uint32_t kMaxSegments = kQueueSize - 2;  // header and status take a descriptor each
  static constexpr std::uint32_t kMaxSegmentBytes = 32 * 1024;
  static constexpr std::size_t kMaxRequestBytes = std::size_t{kMaxSegments} * kMaxSegmentBytes;
  static constexpr std::uint32_t kMaxDiscardRanges = 16;
  static constexpr std::uint64_t kMaxDiscardBytes = std::uint64_t{1} << 30;  // of one range
  // At most one at a time inside the gate; a deferring device has more, and takes no request beyond it.
  static constexpr std::size_t kMaxOutstanding = kQueueSize;
  // Nor while the buffers of those that it has are as large: they are the host's memory, and part of a saved state.
  static constexpr std::size_t kMaxOutstandingBytes = kMaxRequestBytes;
  static constexpr unsigned kRequestsPerServe = kQueueSize;
  static constexpr std::size_t kIdBytes = 20;  // VIRTIO_BLK_T_GET_ID

  // Deferring if there is an executor, which outlives the device's use.
  VirtioBlock(DiskIndex index, const DiskConfig& config, OutputGate& output, BlockExecutor* executor = nullptr);

  // Of a deferring device, without its lock, from the machine's thread:
  // The outstanding requests that were performed, up to the first that was not.
  [[nodiscard]] std::vector<BlockCompletion> performed() const;
  enum class Completed { kYes, kNotOutstanding, kFailedHere };
  // Returns the first outstanding request with this head to the driver. kFailedHere: the status says that it was
  // done, but performing it here failed. The request must have been performed.
  [[nodiscard]] Completed complete(const BlockCompletion& completion);
  // Every request that is outstanding now ends uncertain, however it was or will be performed.
  void make_uncertain();
  // At an epoch's end: what was performed until now counts as performed in a saved state. What is performed later,
  // while the machine is paused and its outputs may belong to the next epoch already, does not: it is repeated.
  void settle();
  // What save() does not tell about the outstanding requests, in its order: whether and how they were performed.
  void save_results(capnp::List<schema::BlockResult>::Builder results) const;
  void restore_results(capnp::List<schema::BlockResult>::Reader results);
  // Once, before a restored device is used: what had not been performed is submitted again (rule P7: every request can
  // be repeated).
  void reissue_restored();
  [[nodiscard]] std::size_t outstanding() const;

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
  struct Job;
  struct Outstanding {
    std::uint16_t head = 0;
    std::shared_ptr<Job> job;
    bool uncertain = false;
    bool settled = false;  // performed, as far as a saved state tells
    std::uint32_t held_bytes = 0;  // of its buffer, as it was taken
  };
  enum class Status : std::uint8_t;

  [[nodiscard]] std::optional<Chain> next_request();
  void serve_request(const Chain& chain);
  void defer(const Chain& chain, Request request);
  void submit(std::shared_ptr<Job> job);
  void complete_delivered();
  void parse(const Chain& chain, Request& request);
  void parse_transfer(Request& request) const;
  void parse_ranges(const Chain& chain, Request& request) const;
  [[nodiscard]] Status perform(Request& request) const;
  [[nodiscard]] bool write_zeroes(const Range& range, Bytes& buffer) const;
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
  Bytes bounce_;                       // a request's buffer between requests: kept for its room

  BlockExecutor* executor_;
  std::deque<Outstanding> outstanding_;  // in the order taken
  std::size_t held_bytes_ = 0;           // of them all
  struct Delivered {
    std::uint16_t head = 0;
    std::shared_ptr<Job> job;
    Status status{};
  };
  std::deque<Delivered> delivered_;  // to be returned to the driver by the next serve()
};

}  // namespace pollux::vmm
