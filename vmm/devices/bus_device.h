// What the guest reaches by memory-mapped or port I/O, and how a device interrupts it.
#pragma once

#include <cstdint>

#include "base/bytes.h"

namespace pollux::vmm {

// Called on vCPU threads, concurrently; a device locks itself. Offsets are within the device's registered window;
// widths are 1, 2, 4 or 8 bytes, whatever the guest chose. Never throws: a bad access is the guest's problem.
class BusDevice {
 public:
  virtual ~BusDevice() = default;
  virtual void read(std::uint64_t offset, MutableByteView into) = 0;
  virtual void write(std::uint64_t offset, ByteView from) = 0;

  // Holds the device still: between freeze() and thaw() it touches neither guest memory, nor its own state, nor
  // the output gate. The machine freezes every device after its vCPUs stopped, from the controlling thread.
  virtual void freeze() = 0;
  virtual void thaw() = 0;
};

// An edge-triggered, active-high interrupt of the guest's I/O APIC.
class InterruptLine {
 public:
  virtual ~InterruptLine() = default;
  virtual void trigger() = 0;
};

}  // namespace pollux::vmm
