#include "vmm/kvm/vm.h"

#include <signal.h>
#include <spdlog/spdlog.h>
#include <sys/ioctl.h>
#include <sys/utsname.h>

#include <algorithm>
#include <cstdio>
#include <utility>

#include "base/error.h"

namespace pollux::vmm::kvm {
namespace {

// Real-mode support of VT-x wants four pages the guest does not use: below the BIOS area, in the 32-bit hole
// (Documentation/virt/kvm/api.rst, KVM_SET_TSS_ADDR and KVM_SET_IDENTITY_MAP_ADDR).
constexpr unsigned long kTssAddress = 0xfffb'd000;
constexpr std::uint64_t kIdentityMapAddress = 0xfffb'c000;

// The largest ring KVM allows (KVM_DIRTY_RING_MAX_ENTRIES): a full one costs an exit and a reset in
// mid-epoch.
constexpr std::uint32_t kMaxRingEntries = 65536;

// On the calling thread; they come afterwards.
class SignalsBlocked {
 public:
  SignalsBlocked() {
    sigset_t all;
    ::sigfillset(&all);
    POLLUX_ASSERT(::pthread_sigmask(SIG_SETMASK, &all, &before_) == 0);
  }
  ~SignalsBlocked() { ::pthread_sigmask(SIG_SETMASK, &before_, nullptr); }
  SignalsBlocked(const SignalsBlocked&) = delete;
  SignalsBlocked& operator=(const SignalsBlocked&) = delete;

 private:
  sigset_t before_;
};

// See DirtyLog::kRing.
bool reset_may_end_early() {
  constexpr std::pair kSince{6u, 17u};
  utsname kernel{};
  std::pair version{0u, 0u};
  const bool told = ::uname(&kernel) == 0 && std::sscanf(kernel.release, "%u.%u", &version.first, &version.second) == 2;
  return !told || version >= kSince;
}

}  // namespace

Vm::Vm(const System& system, GuestMemory& memory, DirtyLog dirty_log, Irqchip irqchip, Reprotect reprotect)
    : system_(system),
      memory_(memory),
      irqchip_(irqchip),
      reprotect_(reprotect),
      fd_(checked_ioctl(system.fd(), KVM_CREATE_VM, "KVM_CREATE_VM", 0UL)),
      dirty_log_(dirty_log) {
  reserve_pages();
  if (has_irqchip()) create_irqchip();
  // Before any vCPU: each gets its ring when it is created.
  dirty_log_ == DirtyLog::kRing ? prepare_ring() : prepare_bitmap();
  set_slots(0);
}

void Vm::reserve_pages() const {
  checked_ioctl(fd_, KVM_SET_TSS_ADDR, "KVM_SET_TSS_ADDR", kTssAddress);
  if (system_.capability(KVM_CAP_SET_IDENTITY_MAP_ADDR) > 0) {
    checked_ioctl(fd_, KVM_SET_IDENTITY_MAP_ADDR, "KVM_SET_IDENTITY_MAP_ADDR", &kIdentityMapAddress);
  }
}

void Vm::create_irqchip() const {
  checked_ioctl(fd_, KVM_CREATE_IRQCHIP, "KVM_CREATE_IRQCHIP");
  kvm_pit_config pit{};
  pit.flags = KVM_PIT_SPEAKER_DUMMY;  // port 0x61, with which kernels time the TSC against the PIT
  checked_ioctl(fd_, KVM_CREATE_PIT2, "KVM_CREATE_PIT2", &pit);
}

Fd Vm::create_vcpu(std::uint32_t id) const {
  return Fd(checked_ioctl(fd_, KVM_CREATE_VCPU, "KVM_CREATE_VCPU", static_cast<unsigned long>(id)));
}

void Vm::prepare_ring() {
  if (!enable_ring(KVM_CAP_DIRTY_LOG_RING_ACQ_REL) && !enable_ring(KVM_CAP_DIRTY_LOG_RING)) {
    throw UsageError("dirty-log ring: KVM on this host has none: use bitmap");
  }
  if (reset_may_end_early()) {
    spdlog::warn("this kernel's dirty ring loses pages when this process is stopped at a bad moment: use the bitmap");
  }
}

void Vm::prepare_bitmap() {
  std::size_t words = 0;
  for (const auto& region : memory_.regions()) {
    words = std::max(words, (region.bytes.size() / kPageSize + 63) / 64);
  }
  bitmap_.resize(words);
  if (reprotect_ == Reprotect::kByHarvest) return;
  kvm_enable_cap enable{};
  enable.cap = KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2;
  enable.args[0] = KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE;
  checked_ioctl(fd_, KVM_ENABLE_CAP, "KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2", &enable);
}

bool Vm::can_protect_by_call(const System& system) {
  return (system.capability(KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2) & KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE) != 0;
}

bool Vm::enable_ring(long capability) {
  const int max_bytes = system_.capability(capability);
  if (max_bytes <= 0) return false;
  const auto entries =
      std::min<std::uint32_t>(kMaxRingEntries, static_cast<std::uint32_t>(max_bytes) / sizeof(kvm_dirty_gfn));
  kvm_enable_cap enable{};
  enable.cap = static_cast<std::uint32_t>(capability);
  enable.args[0] = entries * sizeof(kvm_dirty_gfn);
  if (::ioctl(fd_.get(), KVM_ENABLE_CAP, &enable) < 0) return false;
  ring_entries_ = entries;
  return true;
}

void Vm::set_slots(std::uint32_t flags) const {
  std::uint32_t slot = 0;
  for (const GuestMemory::Region& region : memory_.regions()) {
    kvm_userspace_memory_region entry{};
    entry.slot = slot++;
    entry.flags = flags;
    entry.guest_phys_addr = region.start.value;
    entry.memory_size = region.bytes.size();
    entry.userspace_addr = reinterpret_cast<std::uintptr_t>(region.bytes.data());
    try {
      checked_ioctl(fd_, KVM_SET_USER_MEMORY_REGION, "KVM_SET_USER_MEMORY_REGION", &entry);
    } catch (const KvmError& error) {
      throw GuestMemoryError(error.what());
    }
  }
}

void Vm::start_logging() { set_slots(KVM_MEM_LOG_DIRTY_PAGES); }
void Vm::stop_logging() { set_slots(0); }

void Vm::reset_dirty_rings() {
  const SignalsBlocked blocked;  // see DirtyLog::kRing
  checked_ioctl(fd_, KVM_RESET_DIRTY_RINGS, "KVM_RESET_DIRTY_RINGS");
}

std::optional<Gfn> Vm::frame_of(std::uint32_t slot, std::uint64_t page) const {
  // The upper half of `slot` is the address space; ours is 0.
  if (slot >= memory_.regions().size()) return std::nullopt;
  const GuestMemory::Region& region = memory_.regions()[slot];
  if (page >= region.bytes.size() / kPageSize) return std::nullopt;
  return Gfn{region.start.gfn().value + page};
}

void Vm::harvest_bitmap() {
  for (std::uint32_t slot = 0; slot < memory_.regions().size(); ++slot) {
    const GuestMemory::Region& region = memory_.regions()[slot];
    const std::size_t words = (region.bytes.size() / kPageSize + 63) / 64;
    kvm_dirty_log log{};
    log.slot = slot;
    log.dirty_bitmap = bitmap_.data();
    checked_ioctl(fd_, KVM_GET_DIRTY_LOG, "KVM_GET_DIRTY_LOG", &log);
    // KVM leaves the last word's bits beyond the region zero; DirtySet would not accept them.
    for (std::size_t word = 0; word < words; ++word) {
      if (bitmap_[word] == 0) continue;  // most are, of a large guest
      memory_.dirty().merge({region.start.gfn().value + word * DirtySet::kFramesPerWord}, bitmap_[word]);
    }
  }
}

void Vm::protect(std::span<const Gfn> pages) {
  POLLUX_ASSERT(protects_by_call());
  std::uint32_t slot = 0;
  for (const GuestMemory::Region& region : memory_.regions()) {
    const auto end = std::ranges::lower_bound(pages, Gfn{region.start.gfn().value + region.bytes.size() / kPageSize});
    const auto count = static_cast<std::size_t>(end - pages.begin());
    if (count > 0) protect(slot, pages.first(count));
    pages = pages.subspan(count);
    ++slot;
  }
}

// KVM takes a range of whole words (KVM_CLEAR_DIRTY_LOG), but for the slot's end.
void Vm::protect(std::uint32_t slot, std::span<const Gfn> pages) {
  const GuestMemory::Region& region = memory_.regions()[slot];
  const std::uint64_t start = region.start.gfn().value;
  const auto word_of = [start](Gfn gfn) { return (gfn.value - start) / DirtySet::kFramesPerWord; };
  const std::uint64_t first = word_of(pages.front());
  const std::uint64_t end = word_of(pages.back()) + 1;
  std::fill(bitmap_.begin(), bitmap_.begin() + static_cast<std::ptrdiff_t>(end - first), 0);
  for (const Gfn gfn : pages) bitmap_[word_of(gfn) - first] |= std::uint64_t{1} << (gfn.value - start) % DirtySet::kFramesPerWord;
  kvm_clear_dirty_log clear{};
  clear.slot = slot;
  clear.first_page = first * DirtySet::kFramesPerWord;
  clear.num_pages = static_cast<std::uint32_t>(
      std::min<std::uint64_t>(end * DirtySet::kFramesPerWord, region.bytes.size() / kPageSize) - clear.first_page);
  clear.dirty_bitmap = bitmap_.data();
  checked_ioctl(fd_, KVM_CLEAR_DIRTY_LOG, "KVM_CLEAR_DIRTY_LOG", &clear);
}

void Vm::pulse(Gsi gsi) const {
  // Fails only for a pin that does not exist, and those are ours to choose.
  kvm_irq_level line{};
  line.irq = gsi.value;
  for (const std::uint32_t level : {1u, 0u}) {
    line.level = level;
    [[maybe_unused]] const int result = ::ioctl(fd_.get(), KVM_IRQ_LINE, &line);
  }
}

void Vm::add_doorbell(GuestAddress address, std::uint32_t value, const Fd& event) const {
  kvm_ioeventfd doorbell{};
  doorbell.datamatch = value;
  doorbell.addr = address.value;
  doorbell.len = sizeof value;
  doorbell.fd = event.get();
  doorbell.flags = KVM_IOEVENTFD_FLAG_DATAMATCH;
  checked_ioctl(fd_, KVM_IOEVENTFD, "KVM_IOEVENTFD", &doorbell);
}

IrqchipState Vm::irqchip() const {
  IrqchipState state;
  for (std::uint32_t id = 0; id < state.chips.size(); ++id) {
    state.chips[id].chip_id = id;
    checked_ioctl(fd_, KVM_GET_IRQCHIP, "KVM_GET_IRQCHIP", &state.chips[id]);
  }
  checked_ioctl(fd_, KVM_GET_PIT2, "KVM_GET_PIT2", &state.pit);
  return state;
}

void Vm::set_irqchip(const IrqchipState& state) const {
  for (const kvm_irqchip& chip : state.chips) {
    checked_ioctl(fd_, KVM_SET_IRQCHIP, "KVM_SET_IRQCHIP", &chip);
  }
  checked_ioctl(fd_, KVM_SET_PIT2, "KVM_SET_PIT2", &state.pit);
}

kvm_clock_data Vm::clock() const {
  kvm_clock_data clock{};
  checked_ioctl(fd_, KVM_GET_CLOCK, "KVM_GET_CLOCK", &clock);
  return clock;
}

void Vm::set_clock(const kvm_clock_data& clock) const {
  checked_ioctl(fd_, KVM_SET_CLOCK, "KVM_SET_CLOCK", &clock);
}

}  // namespace pollux::vmm::kvm
