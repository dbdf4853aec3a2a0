@0xe1b55a7c9d20f4c6;
# The saved state of a machine, without its memory. Structures of the KVM API are kept as they are (their layout is the
# kernel's ABI); everything else field by field. Everything is checked when it is read.

using Cxx = import "/capnp/c++.capnp";
$Cxx.namespace("pollux::vmm::schema");

using Virtio = import "../devices/virtio/virtio_state.capnp";
using Platform = import "../devices/platform/platform_state.capnp";

struct DiskConfigState {
  size @0 :UInt64;
  readOnly @1 :Bool;
}

struct MachineConfigState {
  memoryBytes @0 :UInt64;
  vcpus @1 :UInt32;
  disks @2 :List(DiskConfigState);
  nics @3 :List(Data);
  # MAC addresses.
  profile @4 :UInt8;
  # MachineProfile.
}

struct VcpuState {
  mpState @0 :Data;            # kvm_mp_state
  registers @1 :Data;          # kvm_regs
  systemRegisters @2 :Data;    # kvm_sregs2
  extendedControl @3 :Data;    # kvm_xcrs
  debug @4 :Data;              # kvm_debugregs
  lapic @5 :Data;              # kvm_lapic_state
  events @6 :Data;             # kvm_vcpu_events
  xsave @7 :Data;              # kvm_xsave, as long as the host has it
  msrs @8 :Data;               # kvm_msr_entry, repeated
  tscKhz @9 :UInt32;
}

struct ExitState {
  union {
    running @0 :Void;
    powerOff @1 :Void;
    reset @2 :Void;
    crash @3 :Text;
  }
}

struct MachineState {
  version @0 :UInt32;
  config @1 :MachineConfigState;
  cpuid @2 :Data;              # kvm_cpuid_entry2, repeated; without APIC ids
  vcpus @3 :List(VcpuState);

  pics @4 :List(Data);         # kvm_irqchip: both PICs and the I/O APIC
  pit @5 :Data;                # kvm_pit_state2
  clockNs @6 :UInt64;          # kvmclock
  realtimeNs @7 :UInt64;       # the host's CLOCK_REALTIME at the same moment

  serial @8 :Platform.SerialState;
  rtc @9 :Platform.RtcState;
  power @10 :Platform.PowerState;
  virtio @11 :List(Virtio.VirtioDeviceState);
  # In the order of their slots.

  exit @12 :ExitState;
}
