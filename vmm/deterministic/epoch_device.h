// The epoch device (vmm/guest/abi.h): where a deterministic guest's epochs end, where its time and entropy come from,
// and what its console prints on.
#pragma once

#include <cstdint>
#include <utility>

#include "vmm/deterministic/environment.h"
#include "vmm/devices/bus_device.h"
#include "vmm/gates/output_gate.h"
#include "vmm/memory/guest_memory.h"

namespace pollux::vmm {

// Used on the machine's thread only.
class EpochDevice final : public BusDevice {
 public:
  // What is part of the machine's state.
  struct State {
    std::uint64_t timer_ns = 0;
    std::uint64_t event_word = 0;  // its address; 0: none
    bool operator==(const State&) const = default;
  };

  EpochDevice(Environment& environment, GuestMemory& memory, OutputGate& output)
      : environment_(environment), memory_(memory), output_(output) {}

  void read(std::uint64_t offset, MutableByteView into) override;
  void write(std::uint64_t offset, ByteView from) override;
  void freeze() override {}
  void thaw() override {}

  // What the guest did in its last access.
  enum class Request { kNone, kEpochEnd, kWait, kPowerOff };
  [[nodiscard]] Request take_request() { return std::exchange(request_, Request::kNone); }
  [[nodiscard]] std::uint32_t exit_code() const { return exit_code_; }

  // At an epoch's end: console output goes on to the gate. True when there was any.
  bool flush();
  // Whether the timer was due; then it is off.
  bool take_timer(std::chrono::nanoseconds clock);
  // Puts bits into the event word. False: the guest has none.
  bool raise(std::uint64_t events);
  [[nodiscard]] bool events_waiting() const;

  [[nodiscard]] const State& state() const { return state_; }
  // Throws Error when the state is impossible.
  void restore(const State& state);

 private:
  [[nodiscard]] bool is_event_word(std::uint64_t address) const;
  void print(ByteView bytes);

  Environment& environment_;
  GuestMemory& memory_;
  OutputGate& output_;
  State state_;
  Request request_ = Request::kNone;
  std::uint32_t exit_code_ = 0;
  Bytes printed_;
};

}  // namespace pollux::vmm
