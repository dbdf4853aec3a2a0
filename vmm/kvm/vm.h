// One KVM virtual machine: its memory slots, interrupt controllers, clock and dirty log.
#pragma once

#include "vmm/kvm/kvm_abi.h"

#include <array>
#include <cstdint>
#include <mutex>
#include <span>
#include <vector>

#include "base/fd.h"
#include "vmm/devices/bus_device.h"
#include "vmm/kvm/system.h"
#include "vmm/machine/machine_config.h"
#include "vmm/memory/guest_memory.h"

namespace pollux::vmm::kvm {

// A pin of the I/O APIC ("global system interrupt").
struct Gsi {
  std::uint32_t value = 0;
};

// What the in-kernel interrupt controllers and timer hold.
struct IrqchipState {
  std::array<kvm_irqchip, 3> chips{};  // PIC master, PIC slave, I/O APIC
  kvm_pit_state2 pit{};
};

// Who has the interrupt controllers and the timer: KVM, or nobody (then interrupts are queued by Vcpu::interrupt(), and
// vCPUs have no local APIC).
enum class Irqchip { kInKernel, kNone };

// With the bitmap: when a page that was written is protected again, so that the next write to it takes a fault and is logged.
enum class Reprotect {
  kByHarvest,
  kByCall,  // protect(); a harvest tells of a page again and again until then. Only where can_protect_by_call().
};

class Vm {
 public:
  // With `memory`, which outlives it, as its RAM. Throws KvmError.
  Vm(const System& system, GuestMemory& memory, DirtyLog dirty_log,
     Irqchip irqchip = Irqchip::kInKernel, Reprotect reprotect = Reprotect::kByHarvest);
  // Documentation/virt/kvm/api.rst, KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2
  [[nodiscard]] static bool can_protect_by_call(const System& system);

  [[nodiscard]] const System& system() const { return system_; }
  [[nodiscard]] const Fd& fd() const { return fd_; }
  [[nodiscard]] bool has_irqchip() const { return irqchip_ == Irqchip::kInKernel; }
  [[nodiscard]] Fd create_vcpu(std::uint32_t id) const;

  [[nodiscard]] DirtyLog dirty_log() const { return dirty_log_; }
  // Of each vCPU's dirty ring; 0 with the bitmap.
  [[nodiscard]] std::uint32_t ring_entries() const { return ring_entries_; }
  // Write-protects all memory: from here on the log tells what is written.
  void start_logging();
  void stop_logging();
  // With the bitmap: moves what was written since it was last protected into GuestMemory::dirty().
  void harvest_bitmap();
  [[nodiscard]] bool protects_by_call() const { return dirty_log_ == DirtyLog::kBitmap && reprotect_ == Reprotect::kByCall; }
  // When it protects by call. Ascending.
  void protect(std::span<const Gfn> pages);
  // Makes harvested ring entries' pages protected again. Any thread.
  void reset_dirty_rings();
  // The frame a ring entry names, if it is one of ours.
  [[nodiscard]] std::optional<Gfn> frame_of(std::uint32_t slot, std::uint64_t page) const;
  [[nodiscard]] GuestMemory& memory() const { return memory_; }

  // One edge on the pin. Synchronous (unlike an irqfd, which goes through a kernel work queue): once a pause
  // has stopped everything that could raise interrupts, the saved irqchip holds every one. Any thread; never
  // throws.
  void pulse(Gsi gsi) const;
  // Signals `event` instead of exiting when the guest writes `value` as 4 bytes to `address`.
  void add_doorbell(GuestAddress address, std::uint32_t value, const Fd& event) const;

  // While no vCPU runs.
  [[nodiscard]] IrqchipState irqchip() const;
  void set_irqchip(const IrqchipState& state) const;
  [[nodiscard]] kvm_clock_data clock() const;
  void set_clock(const kvm_clock_data& clock) const;

 private:
  void reserve_pages() const;
  void create_irqchip() const;
  void prepare_ring();
  void prepare_bitmap();
  void protect(std::uint32_t slot, std::span<const Gfn> pages);
  [[nodiscard]] bool enable_ring(long capability);
  void set_slots(std::uint32_t flags) const;

  const System& system_;
  GuestMemory& memory_;
  Irqchip irqchip_;
  Reprotect reprotect_;
  Fd fd_;
  DirtyLog dirty_log_;
  std::uint32_t ring_entries_ = 0;
  std::vector<std::uint64_t> bitmap_;  // scratch for the largest slot
};

// An interrupt line of a device, edge-triggered.
class PulseLine final : public InterruptLine {
 public:
  PulseLine(const Vm& vm, Gsi gsi) : vm_(vm), gsi_(gsi) {}
  void trigger() override { vm_.pulse(gsi_); }

 private:
  const Vm& vm_;
  Gsi gsi_;
};

}  // namespace pollux::vmm::kvm
