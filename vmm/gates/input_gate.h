// The input gate: the one way by which anything the guest cannot compute for itself comes in.
//
// Arrivals (received frames, console input) are offered by the host's backends; the gate decides when the
// devices get them. Environment values (clock, entropy) are asked for by the devices. An unprotected machine and
// a `copy` primary pass everything through; `lockstep` records, buffers to the epoch's end, and replays.
#pragma once

#include <chrono>
#include <variant>

#include "base/bytes.h"
#include "vmm/gates/output_gate.h"

namespace pollux::vmm {

struct FrameArrival {
  NicIndex nic;
  Bytes frame;  // Ethernet, without virtio header
};
struct ConsoleArrival {
  ConsoleIndex console;
  Bytes bytes;
};
using Arrival = std::variant<FrameArrival, ConsoleArrival>;

// Implemented by the machine: hands an arrival to its device.
class ArrivalSink {
 public:
  virtual ~ArrivalSink() = default;
  virtual void deliver(Arrival arrival) = 0;
};

class InputGate {
 public:
  virtual ~InputGate() = default;

  // The machine's end of the gate; set once before start.
  virtual void attach(ArrivalSink& sink) = 0;
  // From the backends' thread.
  virtual void offer(Arrival arrival) = 0;

  // Environment values. Time since the Unix epoch (the RTC), and random bytes (virtio-rng).
  [[nodiscard]] virtual std::chrono::nanoseconds wall_clock() = 0;
  virtual void entropy(MutableByteView into) = 0;
};

}  // namespace pollux::vmm
