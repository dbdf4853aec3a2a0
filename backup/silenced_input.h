// The input gate of a machine that executes in lockstep on a backup: what comes from this host's own devices is kept from the
// guest (rule P3), for the primary's inputs are its inputs. After promotion everything passes.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>

#include "vmm/gates/pass_through.h"

namespace pollux::backup {

// Of interrupts that were ignored. Who reads it may be gone when the machine is not.
using IgnoredCount = std::shared_ptr<std::atomic<std::uint64_t>>;

// offer() from any thread.
class SilencedInput final : public vmm::InputGate {
 public:
  explicit SilencedInput(IgnoredCount ignored) : ignored_(std::move(ignored)) {}

  // The machine stands still.
  void promote() { promoted_ = true; }

  void attach(vmm::ArrivalSink& sink) override { passing_.attach(sink); }
  void offer(vmm::Arrival arrival) override {
    if (promoted_) return passing_.offer(std::move(arrival));
    ++*ignored_;  // P3
  }
  [[nodiscard]] std::chrono::nanoseconds wall_clock() override { return passing_.wall_clock(); }
  void entropy(MutableByteView into) override { passing_.entropy(into); }

 private:
  vmm::PassThroughInput passing_;
  const IgnoredCount ignored_;
  std::atomic<bool> promoted_ = false;
};

}  // namespace pollux::backup
