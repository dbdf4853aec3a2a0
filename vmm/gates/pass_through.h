// Gates of an unprotected machine: everything passes at once.
#pragma once

#include "vmm/gates/input_gate.h"
#include "vmm/gates/output_gate.h"
#include "vmm/machine/backends.h"

namespace pollux::vmm {

class PassThroughInput final : public InputGate {
 public:
  void attach(ArrivalSink& sink) override { sink_ = &sink; }
  void offer(Arrival arrival) override { sink_->deliver(std::move(arrival)); }
  [[nodiscard]] std::chrono::nanoseconds wall_clock() override;
  void entropy(MutableByteView into) override;

 private:
  ArrivalSink* sink_ = nullptr;
};

class PassThroughOutput final : public OutputGate {
 public:
  explicit PassThroughOutput(Backends& backends) : backends_(backends) {}
  // A TAP whose queue is full drops, as a NIC would: never false.
  [[nodiscard]] bool transmit(NicIndex nic, ByteView frame) override;
  void on_room(std::function<void()>) override {}
  void console(ConsoleIndex console, ByteView bytes) override;
  [[nodiscard]] bool read(DiskIndex disk, std::uint64_t offset, MutableByteView into) override;
  [[nodiscard]] bool write(DiskIndex disk, std::uint64_t offset, ByteView from) override;
  [[nodiscard]] bool discard(DiskIndex disk, std::uint64_t offset, std::uint64_t length) override;
  [[nodiscard]] bool flush(DiskIndex disk) override;

 private:
  Backends& backends_;
};

}  // namespace pollux::vmm
