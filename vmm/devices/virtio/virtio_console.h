// virtio-console (virtio 1.2, 5.3) with its one basic port: hvc0 in Linux.
#pragma once

#include <deque>

#include "vmm/devices/virtio/virtio_function.h"
#include "vmm/gates/output_gate.h"

namespace pollux::vmm {

class VirtioConsole final : public VirtioFunction {
 public:
  static constexpr QueueIndex kReceiveQueue{0};
  static constexpr QueueIndex kTransmitQueue{1};
  static constexpr std::uint16_t kQueueSize = 64;
  // Input beyond this, and beyond the driver's buffers, is dropped and logged.
  static constexpr std::size_t kMaxWaitingInput = std::size_t{64} * 1024;
  static constexpr std::size_t kMaxOutputBytes =
      std::size_t{64} * 1024;  // of one request; the rest is dropped
  static constexpr unsigned kRequestsPerServe = kQueueSize;

  explicit VirtioConsole(OutputGate& output) : output_(output) {}

  // Input; from any thread, waits while the device is frozen.
  void deliver(ByteView input);

  [[nodiscard]] DeviceType type() const override { return DeviceType::kConsole; }
  [[nodiscard]] std::uint64_t features() const override { return 0; }
  [[nodiscard]] std::span<const std::uint16_t> queue_sizes() const override;
  [[nodiscard]] ByteView config() const override { return {}; }
  [[nodiscard]] bool serve(QueueIndex index) override;
  void reset() override {}  // what was typed is not the driver's: the next one gets it
  void save(schema::VirtioDeviceState::Function::Builder state) const override;
  void restore(schema::VirtioDeviceState::Function::Reader state) override;

 private:
  [[nodiscard]] bool serve_receive();
  [[nodiscard]] bool serve_transmit();

  OutputGate& output_;
  std::deque<std::byte> input_;
  bool drop_logged_ = false;
};

}  // namespace pollux::vmm
