#include "vmm/machine/stock_machine.h"

#include <time.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <mutex>
#include <thread>

#include "base/error.h"
#include "vmm/boot/boot_loader.h"
#include "vmm/boot/long_mode.h"
#include "vmm/kvm/cpuid.h"
#include "vmm/kvm/msr.h"
#include "vmm/kvm/system.h"
#include "vmm/machine/device_set.h"
#include "vmm/machine/vcpu_thread.h"
#include "vmm/state/config_state.h"
#include "vmm/state/machine_state.h"
#include "vmm/state/message.h"

namespace pollux::vmm {
namespace {

// A restored guest's clocks go on by the time it was away, as the hosts' clocks tell it. Beyond this they are
// believed to disagree, and the guest's time goes on by this much only.
constexpr std::uint64_t kMaxAwayNs = 3'600'000'000'000;
// Where save() builds its message; more is allocated when a machine has more.
constexpr std::size_t kScratchWords = 16 * 1024;

std::uint64_t realtime_ns() {
  timespec now{};
  ::clock_gettime(CLOCK_REALTIME, &now);
  return static_cast<std::uint64_t>(now.tv_sec) * 1'000'000'000 + static_cast<std::uint64_t>(now.tv_nsec);
}

std::uint64_t away_ns(std::uint64_t saved_realtime_ns) {
  const std::uint64_t now = realtime_ns();
  return now > saved_realtime_ns ? std::min(now - saved_realtime_ns, kMaxAwayNs) : 0;
}

void check_usable(const MachineConfig& config, const Backends& backends) {
  try {
    check(config);
  } catch (const Error& error) {
    throw UsageError(error.what());
  }
  if (config.disks.size() != backends.disk_count() || config.nics.size() != backends.nic_count()) {
    throw UsageError("machine config: its disks and NICs are not those given on this host");
  }
}

class StockVm final : public Machine {
 public:
  StockVm(const MachineConfig& config, std::unique_ptr<GuestMemory> memory, Backends& backends, InputGate& input,
       OutputGate& output, DirtyLog dirty_log)
      : config_(config),
        memory_(std::move(memory)),
        vm_(system_, *memory_, dirty_log),
        devices_(config, *memory_, vm_, backends, input, output,
                 [this](MachineExit exit) { end(std::move(exit)); }),
        scratch_(kj::heapArray<capnp::word>(kScratchWords)) {
    std::fill(scratch_.begin(), scratch_.end(), capnp::word{});
  }
  // Every vCPU stops before the first thread object goes: any of them may still call end().
  ~StockVm() override {
    for (const auto& thread : threads_) thread->halt();
    for (const auto& thread : threads_) thread->wait_parked();
  }

  void boot(const BootSource& source);
  void restore(ByteView state);

  [[nodiscard]] const MachineConfig& config() const override { return config_; }
  [[nodiscard]] GuestMemory& memory() override { return *memory_; }
  [[nodiscard]] DirtyLog dirty_log() const override { return vm_.dirty_log(); }
  [[nodiscard]] bool paused() const override { return paused_; }
  void resume() override;
  void pause() override;

  void start_dirty_tracking() override;
  void stop_dirty_tracking() override;
  std::vector<Gfn> harvest_dirty_pages() override;
  void announce() override;
  Bytes save() override;

  [[nodiscard]] std::optional<std::chrono::steady_clock::time_point> first_entry() const override;
  std::optional<MachineExit> wait_for_exit(std::chrono::milliseconds timeout) override;
  void request_exit() override { end({ExitReason::kRequested, ""}); }
  void end(MachineExit exit);

 private:
  void create_vcpus(kvm::CpuidTable machine_cpuid);
  void restore_clock(const ClockState& clock, std::uint64_t elapsed_ns);
  [[nodiscard]] ClockState clock() const;
  void harvest_kvm();

  MachineConfig config_;
  std::unique_ptr<GuestMemory> memory_;
  kvm::System system_;
  kvm::Vm vm_;
  DeviceSet devices_;
  kvm::CpuidTable cpuid_;
  std::vector<std::unique_ptr<kvm::Vcpu>> vcpus_;
  std::atomic<bool> paused_ = true;
  kj::Array<capnp::word> scratch_;  // all zeros between two uses, as Cap'n Proto wants it

  std::mutex exit_mutex_;
  std::condition_variable exited_;
  std::optional<MachineExit> exit_;  // guarded by exit_mutex_

  std::vector<std::unique_ptr<VcpuThread>> threads_;  // last: they use everything above
};

void StockVm::create_vcpus(kvm::CpuidTable machine_cpuid) {
  cpuid_ = std::move(machine_cpuid);
  for (std::uint32_t id = 0; id < config_.vcpus; ++id) {
    vcpus_.push_back(std::make_unique<kvm::Vcpu>(vm_, id, cpuid_));
  }
  const bool may_spin = std::thread::hardware_concurrency() > config_.vcpus;  // one more: the controlling thread
  for (const auto& vcpu : vcpus_) {
    threads_.push_back(std::make_unique<VcpuThread>(vm_, *vcpu, devices_.buses(), may_spin,
                                                    [this](MachineExit exit) { end(std::move(exit)); }));
  }
}

void StockVm::boot(const BootSource& source) {
  const GuestAddress entry = boot::load_guest(config_, source, *memory_);
  const bool tsc_deadline = system_.capability(KVM_CAP_TSC_DEADLINE_TIMER) > 0;
  create_vcpus(kvm::machine_cpuid(system_.supported_cpuid(), config_.vcpus, tsc_deadline));
  // The others wait for INIT and SIPI, as KVM creates them.
  kvm::Vcpu& first = *vcpus_.front();
  first.set_system_registers(boot::long_mode_system_registers(first.system_registers()));
  first.set_registers(boot::entry_registers(entry));
  // Firmware leaves the caches on: write-back wherever no MTRR says otherwise.
  constexpr std::uint64_t kEnabledWriteBack = 1 << 11 | 6;
  for (const auto& vcpu : vcpus_) vcpu->set_msr(kvm::msr::kMtrrDefaultType, kEnabledWriteBack);
}

void StockVm::restore(ByteView bytes) {
  ReceivedMessage message("machine state", bytes);
  message.read<schema::MachineState>([this](schema::MachineState::Reader state) {
    KvmState kvm = read_kvm_state(state);
    if (kvm.config != config_) throw Error("machine state: of a machine with another configuration");
    create_vcpus(std::move(kvm.cpuid));
    const std::uint64_t elapsed_ns = away_ns(kvm.clock.realtime_ns);
    for (std::size_t i = 0; i < vcpus_.size(); ++i) vcpus_[i]->restore(kvm.vcpus[i], elapsed_ns);
    restore_clock(kvm.clock, elapsed_ns);
    // After the local APICs: a request pending in the I/O APIC is passed on to them.
    vm_.set_irqchip(kvm.irqchip);
    devices_.restore(state);
    if (kvm.exit) end(*kvm.exit);
  });
}

void StockVm::restore_clock(const ClockState& clock, std::uint64_t elapsed_ns) {
  kvm_clock_data data{};
  data.clock = clock.kvmclock_ns + elapsed_ns;
  vm_.set_clock(data);
}

ClockState StockVm::clock() const {
  const kvm_clock_data data = vm_.clock();
  // Without the flag KVM could not read both clocks at once; then they are read one after the other.
  return {data.clock, data.flags & KVM_CLOCK_REALTIME ? data.realtime : realtime_ns()};
}

void StockVm::resume() {
  POLLUX_ASSERT(paused_);
  paused_ = false;
  devices_.thaw();
  for (const auto& thread : threads_) thread->unpark();
}

void StockVm::pause() {
  POLLUX_ASSERT(!paused_);
  for (const auto& thread : threads_) thread->request_park();
  for (const auto& thread : threads_) thread->wait_parked();
  devices_.freeze();
  paused_ = true;
  for (const auto& thread : threads_) thread->start_capture();
}

void StockVm::harvest_kvm() {
  if (vm_.dirty_log() == DirtyLog::kBitmap) return vm_.harvest_bitmap();
  bool any = false;
  for (const auto& vcpu : vcpus_) any |= vcpu->dirty_ring().harvest(vm_);
  if (any) vm_.reset_dirty_rings();
}

void StockVm::start_dirty_tracking() {
  POLLUX_ASSERT(paused_);
  vm_.start_logging();
  (void)harvest_dirty_pages();  // of an earlier tracking, or of the VMM's own writes
}

void StockVm::stop_dirty_tracking() {
  POLLUX_ASSERT(paused_);
  harvest_kvm();  // leaves the rings empty
  vm_.stop_logging();
}

std::vector<Gfn> StockVm::harvest_dirty_pages() {
  POLLUX_ASSERT(paused_);
  harvest_kvm();
  return memory_->dirty().take();
}

void StockVm::announce() {
  POLLUX_ASSERT(paused_);
  devices_.announce();
}

Bytes StockVm::save() {
  POLLUX_ASSERT(paused_);
  capnp::MallocMessageBuilder message(scratch_);
  auto state = message.initRoot<schema::MachineState>();
  state.setVersion(kMachineStateVersion);
  write_config(config_, state.initConfig());
  state.setCpuid(cpuid_data(cpuid_));
  for (const auto& thread : threads_) thread->start_capture();  // a machine that was never paused is captured now
  auto vcpus = state.initVcpus(static_cast<unsigned>(threads_.size()));
  for (unsigned i = 0; i < vcpus.size(); ++i) write_vcpu(threads_[i]->wait_captured(), vcpus[i]);
  const ClockState now = clock();
  state.setClockNs(now.kvmclock_ns);
  state.setRealtimeNs(now.realtime_ns);
  write_irqchip(vm_.irqchip(), state);
  devices_.save(state);
  {
    const std::lock_guard lock(exit_mutex_);
    write_exit(exit_, state.initExit());
  }
  return to_bytes(message);
}

std::optional<std::chrono::steady_clock::time_point> StockVm::first_entry() const {
  std::optional<std::chrono::steady_clock::time_point> first;
  for (const auto& thread : threads_) {
    if (const auto entry = thread->first_entry()) first = first ? std::min(*first, *entry) : *entry;
  }
  return first;
}

void StockVm::end(MachineExit exit) {
  {
    const std::lock_guard lock(exit_mutex_);
    if (exit_) return;
    exit_ = std::move(exit);
  }
  for (const auto& thread : threads_) thread->halt();
  exited_.notify_all();
}

std::optional<MachineExit> StockVm::wait_for_exit(std::chrono::milliseconds timeout) {
  std::unique_lock lock(exit_mutex_);
  exited_.wait_for(lock, timeout, [this] { return exit_.has_value(); });
  return exit_;
}

}  // namespace

std::unique_ptr<Machine> boot_stock_machine(const MachineConfig& config, const BootSource& source, Backends& backends,
                                            InputGate& input, OutputGate& output, DirtyLog dirty_log) {
  check_usable(config, backends);
  auto memory = std::make_unique<GuestMemory>(config.memory_bytes);
  auto machine = std::make_unique<StockVm>(config, std::move(memory), backends, input, output, dirty_log);
  machine->boot(source);
  return machine;
}

std::unique_ptr<Machine> restore_stock_machine(const MachineConfig& config, std::unique_ptr<GuestMemory> memory,
                                               ByteView state, Backends& backends, InputGate& input,
                                               OutputGate& output, DirtyLog dirty_log) {
  check_usable(config, backends);
  if (memory->size() != config.memory_bytes) throw Error("machine state: its memory has another size");
  auto machine = std::make_unique<StockVm>(config, std::move(memory), backends, input, output, dirty_log);
  machine->restore(state);
  return machine;
}

void check_host() { (void)kvm::System(); }

}  // namespace pollux::vmm
