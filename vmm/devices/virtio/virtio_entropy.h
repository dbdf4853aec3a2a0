// virtio-rng (virtio 1.2, 5.4): random bytes, an environment value of the input gate.
#pragma once

#include "vmm/devices/virtio/virtio_function.h"
#include "vmm/gates/input_gate.h"

namespace pollux::vmm {

class VirtioEntropy final : public VirtioFunction {
 public:
  static constexpr std::uint16_t kQueueSize = 16;
  static constexpr std::size_t kMaxRequestBytes = 4096;  // a longer buffer is filled in part
  static constexpr unsigned kRequestsPerServe = kQueueSize;

  explicit VirtioEntropy(InputGate& input) : input_(input) {}

  [[nodiscard]] DeviceType type() const override { return DeviceType::kEntropy; }
  [[nodiscard]] std::uint64_t features() const override { return 0; }
  [[nodiscard]] std::span<const std::uint16_t> queue_sizes() const override;
  [[nodiscard]] ByteView config() const override { return {}; }
  [[nodiscard]] bool serve(QueueIndex index) override;
  void reset() override {}
  void save(schema::VirtioDeviceState::Function::Builder state) const override;
  void restore(schema::VirtioDeviceState::Function::Reader state) override;

 private:
  InputGate& input_;
};

}  // namespace pollux::vmm
