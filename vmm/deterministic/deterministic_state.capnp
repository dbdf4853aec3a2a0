@0xc6a9b5f8d0e3127b;
# The saved state of a deterministic machine between two epochs, without its memory. Structures of the KVM API are kept
# as they are; everything is checked when it is read.

using Cxx = import "/capnp/c++.capnp";
$Cxx.namespace("pollux::vmm::schema");

using Machine = import "../state/machine_state.capnp";
using Virtio = import "../devices/virtio/virtio_state.capnp";

struct DeterministicDeviceState {
  device @0 :Virtio.VirtioDeviceState;
  doorbells @1 :UInt32;               # queues to be served at the next epoch's end, one bit each
  results @2 :List(Virtio.BlockResult);
  # Of a disk: whether and how its outstanding requests were performed, in their order.
  waiting @3 :List(Data);
  # Of a NIC: received frames without a buffer yet.
}

struct DeterministicState {
  version @0 :UInt32;
  config @1 :Machine.MachineConfigState;
  cpuid @2 :Data;                     # kvm_cpuid_entry2, repeated
  vcpu @3 :Machine.VcpuState;

  epoch @4 :UInt64;                   # the one that runs next
  interruptPending @5 :Bool;          # an event interrupt, to be queued before it
  countDue @6 :Bool;                  # the guest's counter is to be loaded before it
  clockNs @7 :Int64;                  # the latest the guest can know
  timerNs @8 :UInt64;
  eventWord @9 :UInt64;
  events @12 :UInt64;                 # raised before there was an event word
  devices @10 :List(DeterministicDeviceState);
  # In the order of their slots.

  exit @11 :Machine.ExitState;
}
