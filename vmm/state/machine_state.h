// Saved state of a machine: everything KVM holds, between its own structures and the schema. Devices write
// and read their parts themselves.
#pragma once

#include <chrono>
#include <optional>
#include <vector>

#include "vmm/kvm/vcpu.h"
#include "vmm/kvm/vm.h"
#include "vmm/machine/machine.h"
#include "vmm/state/machine_state.capnp.h"

namespace pollux::vmm {

// Raised whenever older software must not read what newer wrote.
inline constexpr std::uint32_t kMachineStateVersion = 1;

// kvmclock, and what the host's clock said at the same moment.
struct ClockState {
  std::uint64_t kvmclock_ns = 0;
  std::uint64_t realtime_ns = 0;
};

struct KvmState {
  MachineConfig config;
  kvm::CpuidTable cpuid;
  std::vector<kvm::VcpuState> vcpus;
  kvm::IrqchipState irqchip;
  ClockState clock;
  std::optional<MachineExit> exit;
};

void write_vcpu(const kvm::VcpuState& vcpu, schema::VcpuState::Builder state);
void write_irqchip(const kvm::IrqchipState& irqchip, schema::MachineState::Builder state);
[[nodiscard]] capnp::Data::Reader cpuid_data(const kvm::CpuidTable& cpuid);
// A requested exit is this host's matter and is not saved.
void write_exit(const std::optional<MachineExit>& exit, schema::ExitState::Builder state);

// The parts, for states that are put together differently.
[[nodiscard]] kvm::VcpuState read_vcpu(schema::VcpuState::Reader state);
[[nodiscard]] kvm::CpuidTable read_cpuid(capnp::Data::Reader data);
[[nodiscard]] std::optional<MachineExit> read_exit(schema::ExitState::Reader state);

// The part of the state that is not devices'. Sizes are checked against this kernel's structures; contents
// are for KVM to accept. Throws Error (or kj::Exception, see ReceivedMessage::read()).
KvmState read_kvm_state(schema::MachineState::Reader state);

}  // namespace pollux::vmm
