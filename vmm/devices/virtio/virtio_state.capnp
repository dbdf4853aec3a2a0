@0xd2f4228016eb479a;
# The saved state of one virtio-mmio device: what the driver set up and what the device owes it. Buffers are
# in guest memory. Everything here is checked again when it is restored.

using Cxx = import "/capnp/c++.capnp";
$Cxx.namespace("pollux::vmm::schema");

struct VirtioDeviceState {
  status @0 :UInt8;
  interruptStatus @1 :UInt8;
  deviceFeaturesSelect @2 :UInt32;
  driverFeaturesSelect @3 :UInt32;
  queueSelect @4 :UInt32;
  driverFeatures @5 :UInt64;
  queues @6 :List(VirtioQueueState);

  function :union {
    block @7 :VirtioBlockState;
    net @8 :VirtioNetState;
    console @9 :VirtioConsoleState;
    entropy @10 :Void;
  }
}

struct VirtioQueueState {
  size @0 :UInt16;
  ready @1 :Bool;
  descriptors @2 :UInt64;
  driver @3 :UInt64;
  device @4 :UInt64;
  nextAvailable @5 :UInt16;
  nextUsed @6 :UInt16;
  askedAt @7 :UInt32;
  # Where a notification was asked for (avail_event), plus one; 0: unknown. What is known is not written again.
}

struct VirtioBlockState {
  # Heads of the requests taken off the queue and not returned: issued again after a restore (rule P7).
  outstanding @0 :List(UInt16);
}

struct BlockResult {
  # Of a request that is outstanding (deterministic machines only).
  status @0 :UInt8;            # with which it ends, if it was performed or ends uncertain in any case
  read @1 :Data;
  performed @2 :Bool;
  heldBytes @3 :UInt32;        # what it counts for kMaxOutstandingBytes
}

struct VirtioNetState {
  # Source addresses of the guest's own frames, to announce them after a move. Frames that wait for a receive
  # buffer are not saved: a network may lose them.
  ipv4 @0 :List(Data);
  ipv6 @1 :List(Data);
}

struct VirtioConsoleState {
  # Input no buffer has taken yet. A network may lose frames; a terminal may not lose keystrokes.
  input @0 :Data;
}
