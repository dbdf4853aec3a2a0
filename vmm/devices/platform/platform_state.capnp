@0xb7d6f0a1c53e8842;
# The saved state of the PC's own devices.

using Cxx = import "/capnp/c++.capnp";
$Cxx.namespace("pollux::vmm::schema");

struct SerialState {
  # The registers of a 16550A (National Semiconductor PC16550D data sheet, table II).
  interruptEnable @0 :UInt8;
  fifoControl @1 :UInt8;
  lineControl @2 :UInt8;
  modemControl @3 :UInt8;
  scratch @4 :UInt8;
  divisor @5 :UInt16;
  transmitterEmptyPending @6 :Bool;
  overrun @7 :Bool;
  receiveFifo @8 :Data;
  # What has come over the line and found no room in the FIFO yet.
  waitingInput @9 :Data;
}

struct RtcState {
  index @0 :UInt8;
  # Registers 0x00-0x7f; those that tell the time are not used.
  registers @1 :Data;
}

struct PowerState {
  # ACPI PM1 event and control blocks (ACPI 6.4, 4.8.3).
  status @0 :UInt16;
  enable @1 :UInt16;
  control @2 :UInt16;
}
