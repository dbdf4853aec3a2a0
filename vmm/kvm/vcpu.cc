#include "vmm/kvm/vcpu.h"

#include <spdlog/spdlog.h>
#include <sys/ioctl.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>

#include "vmm/kvm/msr.h"

namespace pollux::vmm::kvm {
namespace {

// Part of a vCPU's state but not in KVM_GET_MSR_INDEX_LIST: the memory type range registers.
constexpr std::array<std::uint32_t, 12> kFixedMtrrs{0x250, 0x258, 0x259, 0x268, 0x269, 0x26a,
                                                    0x26b, 0x26c, 0x26d, 0x26e, 0x26f, msr::kMtrrDefaultType};

// Registers of features the guest's CPUID does not have (machine_cpuid()): reading them in every epoch's
// pause would only cost time.
bool is_hidden(std::uint32_t index) {
  const auto within = [index](std::uint32_t first, std::uint32_t last) {
    return index >= first && index <= last;
  };
  return within(0xc1, 0xd0) || within(0x186, 0x195) || within(0x309, 0x30c) || within(0x345, 0x345) ||
         within(0x38d, 0x390) || within(0x3f1, 0x3f2) || within(0x4c1, 0x4c8) ||  // Intel's PMU
         within(0x480, 0x491) ||                                                  // VMX capabilities
         within(0xc001'0000, 0xc001'0007) || within(0xc001'0200, 0xc001'020f) ||  // AMD's PMU
         within(0xc000'0300, 0xc000'0303) || within(0x4000'0000, 0x4000'01ff);    // Hyper-V
}

kvm_msrs* as_msrs(std::vector<std::uint64_t>& buffer) { return reinterpret_cast<kvm_msrs*>(buffer.data()); }

std::size_t msr_words(std::size_t count) {
  return (sizeof(kvm_msrs) + count * sizeof(kvm_msr_entry) + 7) / 8;
}

std::uint64_t advanced_tsc(std::uint64_t tsc, std::uint64_t elapsed_ns, std::uint32_t khz) {
  constexpr unsigned kNanosecondsPerMillisecond = 1'000'000;
  const auto wide = static_cast<unsigned __int128>(elapsed_ns) * khz / kNanosecondsPerMillisecond;
  return tsc + static_cast<std::uint64_t>(wide);
}

std::string hex(std::uint64_t value) { return fmt::format("{:#x}", value); }

}  // namespace

Vcpu::Vcpu(Vm& vm, std::uint32_t id, const CpuidTable& machine_cpuid)
    : vm_(vm),
      id_(id),
      fd_(vm.create_vcpu(id)),
      run_(fd_, vm.system().run_area_bytes(), 0, "the vCPU's run area") {
  if (vm.dirty_log() == DirtyLog::kRing) ring_ = DirtyRing(vm, fd_);
  const CpuidTable table = vcpu_cpuid(machine_cpuid, id);
  std::vector<std::uint64_t> raw((sizeof(kvm_cpuid2) + table.size() * sizeof(kvm_cpuid_entry2) + 7) / 8);
  auto* list = reinterpret_cast<kvm_cpuid2*>(raw.data());
  list->nent = static_cast<std::uint32_t>(table.size());
  std::copy(table.begin(), table.end(), list->entries);
  checked_ioctl(fd_, KVM_SET_CPUID2, "KVM_SET_CPUID2", list);

  if (const int bytes = ::ioctl(vm.fd().get(), KVM_CHECK_EXTENSION, KVM_CAP_XSAVE2); bytes > 0) {
    xsave2_ = true;
    xsave_bytes_ = std::max(xsave_bytes_, static_cast<std::size_t>(bytes));
  }
  state_.xsave.resize(xsave_bytes_);
  state_.tsc_khz = static_cast<std::uint32_t>(checked_ioctl(fd_, KVM_GET_TSC_KHZ, "KVM_GET_TSC_KHZ"));
  find_readable_msrs();
}

Vcpu::Ran Vcpu::run() {
  if (::ioctl(fd_.get(), KVM_RUN, 0) >= 0) return Ran::kExited;
  // EAGAIN: an application processor that still waits for its INIT was woken.
  if (errno == EINTR || errno == EAGAIN) return Ran::kInterrupted;
  throw KvmError(std::string("KVM_RUN: ") + std::strerror(errno));
}

void Vcpu::deny_run() { __atomic_store_n(&run_area().immediate_exit, std::uint8_t{1}, __ATOMIC_SEQ_CST); }
void Vcpu::allow_run() { __atomic_store_n(&run_area().immediate_exit, std::uint8_t{0}, __ATOMIC_SEQ_CST); }

bool Vcpu::sync_registers() {
  constexpr std::uint64_t kWanted = KVM_SYNC_X86_REGS | KVM_SYNC_X86_SREGS;
  const auto able = static_cast<std::uint64_t>(vm_.system().capability(KVM_CAP_SYNC_REGS));
  if ((able & kWanted) != kWanted) return false;
  run_area().kvm_valid_regs = kWanted;
  return true;
}

void Vcpu::interrupt(std::uint8_t vector) const {
  kvm_interrupt interrupt{};
  interrupt.irq = vector;
  checked_ioctl(fd_, KVM_INTERRUPT, "KVM_INTERRUPT", &interrupt);
}

void Vcpu::set_registers(const kvm_regs& registers) const {
  checked_ioctl(fd_, KVM_SET_REGS, "KVM_SET_REGS", &registers);
}

kvm_regs Vcpu::registers() const {
  kvm_regs registers{};
  checked_ioctl(fd_, KVM_GET_REGS, "KVM_GET_REGS", &registers);
  return registers;
}

void Vcpu::set_system_registers(const kvm_sregs2& registers) const {
  checked_ioctl(fd_, KVM_SET_SREGS2, "KVM_SET_SREGS2", &registers);
}

kvm_sregs2 Vcpu::system_registers() const {
  kvm_sregs2 registers{};
  checked_ioctl(fd_, KVM_GET_SREGS2, "KVM_GET_SREGS2", &registers);
  return registers;
}

kvm_sregs Vcpu::basic_system_registers() const {
  kvm_sregs registers{};
  checked_ioctl(fd_, KVM_GET_SREGS, "KVM_GET_SREGS", &registers);
  return registers;
}

bool Vcpu::try_get_msr(kvm_msr_entry& entry) const {
  std::vector<std::uint64_t> raw(msr_words(1));
  as_msrs(raw)->nmsrs = 1;
  as_msrs(raw)->entries[0].index = entry.index;
  if (::ioctl(fd_.get(), KVM_GET_MSRS, raw.data()) != 1) return false;
  entry.data = as_msrs(raw)->entries[0].data;
  return true;
}

bool Vcpu::try_set_msr(const kvm_msr_entry& entry) const {
  std::vector<std::uint64_t> raw(msr_words(1));
  as_msrs(raw)->nmsrs = 1;
  as_msrs(raw)->entries[0] = entry;
  return ::ioctl(fd_.get(), KVM_SET_MSRS, raw.data()) == 1;
}

void Vcpu::set_msr(std::uint32_t index, std::uint64_t value) const {
  kvm_msr_entry entry{};
  entry.index = index;
  entry.data = value;
  if (!try_set_msr(entry)) throw KvmError("KVM refused to set MSR " + hex(index));
}

void Vcpu::find_readable_msrs() {
  std::vector<std::uint32_t> indices = vm_.system().msr_indices();
  indices.insert(indices.end(), kFixedMtrrs.begin(), kFixedMtrrs.end());
  for (auto index = msr::kMtrrVariableFirst; index <= msr::kMtrrVariableLast; ++index)
    indices.push_back(index);
  std::sort(indices.begin(), indices.end());
  indices.erase(std::unique(indices.begin(), indices.end()), indices.end());
  for (const std::uint32_t index : indices) {
    kvm_msr_entry entry{};
    entry.index = index;
    if (!is_hidden(index) && try_get_msr(entry)) state_.msrs.push_back(entry);
  }
  msr_buffer_.resize(msr_words(state_.msrs.size()));
}

void Vcpu::capture_msrs() {
  kvm_msrs* list = as_msrs(msr_buffer_);
  const auto count = static_cast<std::uint32_t>(state_.msrs.size());
  list->nmsrs = count;
  for (std::uint32_t i = 0; i < count; ++i) list->entries[i] = state_.msrs[i];
  const int got = checked_ioctl(fd_, KVM_GET_MSRS, "KVM_GET_MSRS", list);
  if (got != static_cast<int>(count)) {
    throw KvmError("KVM refused to read MSR " + hex(state_.msrs[static_cast<std::size_t>(got)].index));
  }
  std::copy_n(list->entries, count, state_.msrs.begin());
}

const VcpuState& Vcpu::capture() {
  // MP state first: reading it makes KVM apply a pending INIT or SIPI, which changes the registers; events
  // last but one: reading them moves a pending exception out of where it would be read otherwise.
  checked_ioctl(fd_, KVM_GET_MP_STATE, "KVM_GET_MP_STATE", &state_.mp_state);
  checked_ioctl(fd_, KVM_GET_VCPU_EVENTS, "KVM_GET_VCPU_EVENTS", &state_.events);
  checked_ioctl(fd_, KVM_GET_REGS, "KVM_GET_REGS", &state_.registers);
  checked_ioctl(fd_, KVM_GET_SREGS2, "KVM_GET_SREGS2", &state_.system_registers);
  checked_ioctl(fd_, KVM_GET_XCRS, "KVM_GET_XCRS", &state_.extended_control);
  checked_ioctl(fd_, KVM_GET_DEBUGREGS, "KVM_GET_DEBUGREGS", &state_.debug);
  if (vm_.has_irqchip()) checked_ioctl(fd_, KVM_GET_LAPIC, "KVM_GET_LAPIC", &state_.lapic);
  if (xsave2_) {
    checked_ioctl(fd_, KVM_GET_XSAVE2, "KVM_GET_XSAVE2", state_.xsave.data());
  } else {
    checked_ioctl(fd_, KVM_GET_XSAVE, "KVM_GET_XSAVE", state_.xsave.data());
  }
  capture_msrs();
  return state_;
}

void Vcpu::restore_tsc_frequency(std::uint32_t khz) const {
  if (khz == state_.tsc_khz || khz == 0) return;
  if (::ioctl(fd_.get(), KVM_SET_TSC_KHZ, static_cast<unsigned long>(khz)) == 0) return;
  spdlog::warn("vCPU {}: its TSC ran at {} kHz and runs at {} kHz here, and KVM cannot scale it", id_, khz,
               state_.tsc_khz);
}

// The deadline comes last: KVM drops it unless the APIC's timer is in deadline mode already, and compares it
// with the TSC. An MSR that cannot be set is accepted when it has the value wanted (read-only capability
// registers).
void Vcpu::restore_msrs(const VcpuState& state, std::uint64_t elapsed_ns) const {
  for (kvm_msr_entry entry : state.msrs) {
    if (entry.index == msr::kTscDeadline) continue;
    if (entry.index == msr::kTsc) entry.data = advanced_tsc(entry.data, elapsed_ns, state.tsc_khz);
    if (try_set_msr(entry)) continue;
    kvm_msr_entry present{};
    present.index = entry.index;
    if (try_get_msr(present) && present.data == entry.data) continue;
    throw KvmError(
        fmt::format("KVM refused to set MSR {:#x} of vCPU {} to {:#x}", entry.index, id_, entry.data));
  }
}

void Vcpu::restore(const VcpuState& state, std::uint64_t elapsed_ns) {
  if (state.xsave.size() > xsave_bytes_) {
    throw KvmError("the saved extended CPU state is larger than this host's CPU has");
  }
  restore_tsc_frequency(state.tsc_khz);
  set_system_registers(state.system_registers);  // holds the APIC base: before the APIC
  checked_ioctl(fd_, KVM_SET_XCRS, "KVM_SET_XCRS", &state.extended_control);
  Bytes xsave = state.xsave;
  xsave.resize(xsave_bytes_);
  checked_ioctl(fd_, KVM_SET_XSAVE, "KVM_SET_XSAVE", xsave.data());
  checked_ioctl(fd_, KVM_SET_DEBUGREGS, "KVM_SET_DEBUGREGS", &state.debug);
  restore_msrs(state, elapsed_ns);
  if (vm_.has_irqchip()) checked_ioctl(fd_, KVM_SET_LAPIC, "KVM_SET_LAPIC", &state.lapic);
  const auto deadline = std::find_if(state.msrs.begin(), state.msrs.end(), [](const kvm_msr_entry& entry) {
    return entry.index == msr::kTscDeadline;
  });
  if (deadline != state.msrs.end() && deadline->data != 0) set_msr(msr::kTscDeadline, deadline->data);
  set_registers(state.registers);
  checked_ioctl(fd_, KVM_SET_VCPU_EVENTS, "KVM_SET_VCPU_EVENTS", &state.events);
  checked_ioctl(fd_, KVM_SET_MP_STATE, "KVM_SET_MP_STATE", &state.mp_state);
  // The guest may have been away for long: keeps its soft-lockup watchdog quiet. Refused when the guest has
  // no kvmclock, which is fine.
  [[maybe_unused]] const int told = ::ioctl(fd_.get(), KVM_KVMCLOCK_CTRL, 0);
}

}  // namespace pollux::vmm::kvm
