// Where a deterministic machine's environment values come from: the host, whose answers are kept, or an earlier run's
// record. Every value is 64 bits; longer requests take several.
#pragma once

#include <algorithm>
#include <vector>

#include "vmm/gates/input_gate.h"

namespace pollux::vmm {

// As an input gate it only serves environment values. Not thread safe: used on the machine's thread.
class Environment final : public InputGate {
 public:
  explicit Environment(InputGate& host) : host_(host) {}

  // For the coming epoch.
  void record();
  void replay(std::vector<std::uint64_t> recorded);

  // Never less than it ever was, on whichever host.
  [[nodiscard]] std::chrono::nanoseconds wall_clock() override;
  void entropy(MutableByteView into) override;
  [[nodiscard]] std::uint64_t word();
  // The host's clock, kept from going backwards, and not a value the guest asked for.
  [[nodiscard]] std::chrono::nanoseconds host_clock();
  void see_clock(std::chrono::nanoseconds time) { last_clock_ = std::max(last_clock_, time); }
  [[nodiscard]] std::chrono::nanoseconds last_clock() const { return last_clock_; }

  [[nodiscard]] std::vector<std::uint64_t> take_recorded() { return std::move(taken_); }
  [[nodiscard]] std::size_t used() const { return used_; }
  // More was asked for than was recorded: what was answered is worth nothing.
  [[nodiscard]] bool exhausted() const { return exhausted_; }
  // More was asked for than an epoch may.
  [[nodiscard]] bool excessive() const { return excessive_; }

  void attach(ArrivalSink&) override {}
  void offer(Arrival) override {}

 private:
  enum class Kind { kClock, kEntropy };
  [[nodiscard]] std::uint64_t next(Kind kind);
  [[nodiscard]] std::uint64_t ask_host(Kind kind);

  InputGate& host_;
  std::chrono::nanoseconds last_clock_{};
  bool replaying_ = false;
  std::vector<std::uint64_t> recorded_;
  std::vector<std::uint64_t> taken_;
  std::size_t used_ = 0;
  bool exhausted_ = false;
  bool excessive_ = false;
};

}  // namespace pollux::vmm
