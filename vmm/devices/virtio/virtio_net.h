// virtio-net (virtio 1.2, 5.1): one queue pair, no offloads.
//
// A frame the output gate has no room for stays in the transmit queue until notify(kTransmitQueue) says that
// there is room. Received frames that find no buffer wait in a bounded queue, which is not part of the saved
// state: a network may lose frames, and whoever sent them will repeat what matters.
#pragma once

#include <array>
#include <deque>

#include "vmm/devices/virtio/virtio_function.h"
#include "vmm/gates/output_gate.h"
#include "vmm/machine/machine_config.h"
#include "vmm/net/announcement.h"

namespace pollux::vmm {

struct NetCounters {
  std::uint64_t transmitted = 0;
  std::uint64_t received = 0;
  std::uint64_t transmit_dropped = 0;  // runt or longer than kMaxFrame
  std::uint64_t receive_dropped = 0;   // the same, or the driver not up, or no buffer, or none large enough
};

class VirtioNet final : public VirtioFunction {
 public:
  static constexpr QueueIndex kReceiveQueue{0};
  static constexpr QueueIndex kTransmitQueue{1};
  static constexpr std::uint16_t kQueueSize = 256;
  // Frames without a buffer yet: what comes beyond either is dropped.
  static constexpr std::size_t kMaxWaitingFrames = 512;
  static constexpr std::size_t kMaxWaitingBytes = std::size_t{1} << 20;
  static constexpr unsigned kFramesPerServe = 128;
  static constexpr std::uint16_t kMaxMergedBuffers = 64;  // receive buffers for one frame

  VirtioNet(NicIndex index, const NicConfig& config, OutputGate& output);

  // A frame from the network; from any thread, waits while the device is frozen.
  void deliver(Bytes frame);
  // The frames that tell the network where this NIC is; only while frozen.
  [[nodiscard]] std::vector<Bytes> announcement() const;
  [[nodiscard]] NetCounters counters() const;
  // Received frames without a buffer yet, for whoever must not lose them; only while frozen.
  [[nodiscard]] const std::deque<Bytes>& waiting() const { return waiting_; }
  // Throws Error when they are more than may wait.
  void restore_waiting(std::deque<Bytes> frames);

  [[nodiscard]] DeviceType type() const override { return DeviceType::kNet; }
  [[nodiscard]] std::uint64_t features() const override;
  [[nodiscard]] std::span<const std::uint16_t> queue_sizes() const override;
  [[nodiscard]] ByteView config() const override { return config_space_; }
  [[nodiscard]] bool serve(QueueIndex index) override;
  void reset() override;
  void save(schema::VirtioDeviceState::Function::Builder state) const override;
  void restore(schema::VirtioDeviceState::Function::Reader state) override;

 private:
  [[nodiscard]] bool serve_transmit();
  [[nodiscard]] bool transmit(const Chain& chain);
  [[nodiscard]] bool serve_receive();
  enum class Placement { kPlaced, kNoBuffer, kTooLarge };
  [[nodiscard]] Placement place(ByteView frame);
  void fill(std::span<const Chain> chains, ByteView frame);

  NicIndex index_;
  NicConfig nic_;
  OutputGate& output_;
  std::array<std::byte, 8> config_space_{};

  std::deque<Bytes> waiting_;
  std::size_t waiting_bytes_ = 0;
  AddressLearner addresses_;
  NetCounters counters_;
  Bytes frame_;  // being transmitted
};

}  // namespace pollux::vmm
