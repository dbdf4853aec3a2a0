#include "vmm/state/machine_state.h"

#include <cstring>

#include "base/error.h"
#include "vmm/state/config_state.h"

namespace pollux::vmm {
namespace {

constexpr std::size_t kMaxMsrs = 1024;
constexpr std::size_t kMaxXsave = std::size_t{1} << 20;

[[noreturn]] void bad(const char* what) { throw Error(std::string("machine state: bad ") + what); }

template <class T>
capnp::Data::Reader data_of(const T& object) {
  static_assert(std::is_trivially_copyable_v<T>);
  return {reinterpret_cast<const capnp::byte*>(&object), sizeof object};
}

template <class T>
capnp::Data::Reader data_of(const std::vector<T>& objects) {
  static_assert(std::is_trivially_copyable_v<T>);
  return {reinterpret_cast<const capnp::byte*>(objects.data()), objects.size() * sizeof(T)};
}

template <class T>
void read_object(capnp::Data::Reader data, T& into, const char* what) {
  static_assert(std::is_trivially_copyable_v<T>);
  if (data.size() != sizeof into) bad(what);
  std::memcpy(&into, data.begin(), sizeof into);
}

template <class T>
std::vector<T> read_objects(capnp::Data::Reader data, std::size_t limit, const char* what) {
  static_assert(std::is_trivially_copyable_v<T>);
  if (data.size() % sizeof(T) != 0 || data.size() / sizeof(T) > limit) bad(what);
  std::vector<T> objects(data.size() / sizeof(T));
  if (!objects.empty()) std::memcpy(objects.data(), data.begin(), data.size());
  return objects;
}

kvm::IrqchipState read_irqchip(schema::MachineState::Reader state) {
  kvm::IrqchipState irqchip;
  const auto pics = state.getPics();
  if (pics.size() != irqchip.chips.size()) bad("interrupt controllers");
  for (unsigned i = 0; i < pics.size(); ++i) {
    read_object(pics[i], irqchip.chips[i], "interrupt controller");
    if (irqchip.chips[i].chip_id != i) bad("interrupt controller");
  }
  read_object(state.getPit(), irqchip.pit, "PIT");
  return irqchip;
}

}  // namespace

kvm::VcpuState read_vcpu(schema::VcpuState::Reader state) {
  kvm::VcpuState vcpu;
  read_object(state.getMpState(), vcpu.mp_state, "MP state");
  read_object(state.getRegisters(), vcpu.registers, "registers");
  read_object(state.getSystemRegisters(), vcpu.system_registers, "system registers");
  read_object(state.getExtendedControl(), vcpu.extended_control, "extended control registers");
  read_object(state.getDebug(), vcpu.debug, "debug registers");
  read_object(state.getLapic(), vcpu.lapic, "local APIC");
  read_object(state.getEvents(), vcpu.events, "vCPU events");
  vcpu.xsave = read_objects<std::byte>(state.getXsave(), kMaxXsave, "extended CPU state");
  if (vcpu.xsave.size() < sizeof(kvm_xsave)) bad("extended CPU state");
  vcpu.msrs = read_objects<kvm_msr_entry>(state.getMsrs(), kMaxMsrs, "MSRs");
  vcpu.tsc_khz = state.getTscKhz();
  return vcpu;
}

kvm::CpuidTable read_cpuid(capnp::Data::Reader data) {
  return read_objects<kvm_cpuid_entry2>(data, kvm::kMaxCpuidEntries, "CPUID table");
}

std::optional<MachineExit> read_exit(schema::ExitState::Reader state) {
  switch (state.which()) {
    case schema::ExitState::RUNNING: return std::nullopt;
    case schema::ExitState::POWER_OFF: return MachineExit{ExitReason::kPowerOff, ""};
    case schema::ExitState::RESET: return MachineExit{ExitReason::kReset, ""};
    case schema::ExitState::CRASH: return MachineExit{ExitReason::kCrash, state.getCrash().cStr()};
  }
  bad("exit");
}

void write_vcpu(const kvm::VcpuState& vcpu, schema::VcpuState::Builder state) {
  state.setMpState(data_of(vcpu.mp_state));
  state.setRegisters(data_of(vcpu.registers));
  state.setSystemRegisters(data_of(vcpu.system_registers));
  state.setExtendedControl(data_of(vcpu.extended_control));
  state.setDebug(data_of(vcpu.debug));
  state.setLapic(data_of(vcpu.lapic));
  state.setEvents(data_of(vcpu.events));
  state.setXsave(data_of(vcpu.xsave));
  state.setMsrs(data_of(vcpu.msrs));
  state.setTscKhz(vcpu.tsc_khz);
}

void write_irqchip(const kvm::IrqchipState& irqchip, schema::MachineState::Builder state) {
  auto pics = state.initPics(static_cast<unsigned>(irqchip.chips.size()));
  for (unsigned i = 0; i < pics.size(); ++i) pics.set(i, data_of(irqchip.chips[i]));
  state.setPit(data_of(irqchip.pit));
}

capnp::Data::Reader cpuid_data(const kvm::CpuidTable& cpuid) { return data_of(cpuid); }

void write_exit(const std::optional<MachineExit>& exit, schema::ExitState::Builder state) {
  if (!exit) return state.setRunning();
  switch (exit->reason) {
    case ExitReason::kPowerOff: return state.setPowerOff();
    case ExitReason::kReset: return state.setReset();
    case ExitReason::kCrash: return state.setCrash(exit->detail);
    // Not the guest's end: elsewhere, or later, it goes on.
    case ExitReason::kRequested:
    case ExitReason::kHostFailed: return state.setRunning();
  }
}

KvmState read_kvm_state(schema::MachineState::Reader state) {
  if (state.getVersion() != kMachineStateVersion) {
    throw Error("machine state: version " + std::to_string(state.getVersion()) + ", and this program reads " +
                std::to_string(kMachineStateVersion));
  }
  KvmState kvm;
  kvm.config = read_config(state.getConfig());
  kvm.cpuid = read_cpuid(state.getCpuid());
  if (state.getVcpus().size() != kvm.config.vcpus) bad("number of vCPUs");
  for (const auto vcpu : state.getVcpus()) kvm.vcpus.push_back(read_vcpu(vcpu));
  kvm.irqchip = read_irqchip(state);
  kvm.clock = {state.getClockNs(), state.getRealtimeNs()};
  kvm.exit = read_exit(state.getExit());
  return kvm;
}

}  // namespace pollux::vmm
