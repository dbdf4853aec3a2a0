// One virtual CPU: running it, and its whole state.
#pragma once

#include "vmm/kvm/kvm_abi.h"

#include <cstdint>
#include <vector>

#include "base/bytes.h"
#include "vmm/kvm/cpuid.h"
#include "vmm/kvm/dirty_ring.h"
#include "vmm/kvm/mapping.h"
#include "vmm/kvm/vm.h"

namespace pollux::vmm::kvm {

// Everything a vCPU is, except its CPUID table. The sizes of `xsave` and `msrs` are the host's.
struct VcpuState {
  kvm_mp_state mp_state{};
  kvm_regs registers{};
  kvm_sregs2 system_registers{};
  kvm_xcrs extended_control{};
  kvm_debugregs debug{};
  kvm_lapic_state lapic{};  // zeros without in-kernel irqchip
  kvm_vcpu_events events{};
  Bytes xsave;
  std::vector<kvm_msr_entry> msrs;
  std::uint32_t tsc_khz = 0;
};

// State is read and written only while no thread is inside run(): KVM would make the ioctl wait for it.
class Vcpu {
 public:
  Vcpu(Vm& vm, std::uint32_t id, const CpuidTable& machine_cpuid);

  [[nodiscard]] std::uint32_t id() const { return id_; }
  [[nodiscard]] kvm_run& run_area() const { return *run_.as<kvm_run>(); }
  [[nodiscard]] std::byte* run_bytes() const { return run_.bytes(); }

  enum class Ran { kExited, kInterrupted };
  // Enters the guest; when kExited, run_area() says why. Throws KvmError when KVM cannot run this vCPU at
  // all.
  Ran run();
  // From any thread: makes the present or the next run() return as soon as it has completed pending I/O, and
  // every later one too, until allow_run(). (A thread blocked in run() also needs a signal.)
  void deny_run();
  void allow_run();

  [[nodiscard]] DirtyRing& dirty_ring() { return ring_; }

  // From here on every run() leaves the registers in synced(), without another call into KVM. False: this KVM cannot.
  bool sync_registers();
  [[nodiscard]] const kvm_sync_regs& synced() const { return run_area().s.regs; }
  // Without in-kernel irqchip: delivers the vector at the next entry, at which no I/O may be half done. One at a time.
  void interrupt(std::uint8_t vector) const;

  // 64-bit mode at a kernel's entry point (see boot/long_mode.h).
  void set_registers(const kvm_regs& registers) const;
  [[nodiscard]] kvm_regs registers() const;
  void set_system_registers(const kvm_sregs2& registers) const;
  [[nodiscard]] kvm_sregs2 system_registers() const;
  // As synced() has them.
  [[nodiscard]] kvm_sregs basic_system_registers() const;
  void set_msr(std::uint32_t index, std::uint64_t value) const;

  // The state, in storage of this object that the next call overwrites: taken in every epoch's pause.
  const VcpuState& capture();
  // `elapsed_ns`: how much later than the capture this is; the TSC is advanced by as much.
  void restore(const VcpuState& state, std::uint64_t elapsed_ns);

 private:
  [[nodiscard]] bool try_get_msr(kvm_msr_entry& entry) const;
  [[nodiscard]] bool try_set_msr(const kvm_msr_entry& entry) const;
  void find_readable_msrs();
  void capture_msrs();
  void restore_msrs(const VcpuState& state, std::uint64_t elapsed_ns) const;
  void restore_tsc_frequency(std::uint32_t khz) const;

  Vm& vm_;
  std::uint32_t id_;
  Fd fd_;
  Mapping run_;
  DirtyRing ring_;
  std::size_t xsave_bytes_ = sizeof(kvm_xsave);
  bool xsave2_ = false;
  VcpuState state_;
  std::vector<std::uint64_t> msr_buffer_;  // kvm_msrs with its entries
};

}  // namespace pollux::vmm::kvm
