#include "vmm/deterministic/deterministic_machine.h"

#include <fmt/format.h>
#include <pthread.h>
#include <signal.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <mutex>

#include "base/error.h"
#include "vmm/boot/boot_loader.h"
#include "vmm/boot/long_mode.h"
#include "vmm/deterministic/deterministic_devices.h"
#include "vmm/deterministic/deterministic_state.capnp.h"
#include "vmm/deterministic/environment.h"
#include "vmm/deterministic/epoch_clock.h"
#include "vmm/deterministic/epoch_device.h"
#include "vmm/deterministic/epoch_watch.h"
#include "vmm/deterministic/free_runner.h"
#include "vmm/deterministic/inbox.h"
#include "vmm/deterministic/page_tracker.h"
#include "vmm/guest/abi.h"
#include "vmm/kvm/cpuid.h"
#include "vmm/kvm/kick_signal.h"
#include "vmm/kvm/system.h"
#include "vmm/kvm/vcpu.h"
#include "vmm/kvm/vm.h"
#include "vmm/machine/bus.h"
#include "vmm/machine/listen.h"
#include "vmm/state/config_state.h"
#include "vmm/state/machine_state.h"
#include "vmm/state/message.h"

namespace pollux::vmm {
namespace {

// Raised whenever older software must not read what newer wrote.
constexpr std::uint32_t kStateVersion = 1;

constexpr std::uint64_t kTimeStampDisable = 1 << 2;  // CR4.TSD: RDTSC is an exception outside CPL0, where KVM honours it
constexpr std::uint64_t kInterruptFlag = 1 << 9;
// Set by some processors in the flags that a faulting access leaves, by others not.
constexpr std::uint64_t kResumeFlag = 1 << 16;

using Clock = std::chrono::steady_clock;

// Adds the time of a scope.
class Timed {
 public:
  explicit Timed(std::chrono::nanoseconds& total) : total_(total) {}
  ~Timed() { total_ += Clock::now() - start_; }
  Timed(const Timed&) = delete;
  Timed& operator=(const Timed&) = delete;

 private:
  std::chrono::nanoseconds& total_;
  Clock::time_point start_ = Clock::now();
};

void check_usable(const MachineConfig& config, const Backends& backends) {
  try {
    check(config);
  } catch (const Error& error) {
    throw UsageError(error.what());
  }
  POLLUX_ASSERT(config.profile == MachineProfile::kDeterministic);
  if (config.vcpus != 1) throw UsageError("machine config: a deterministic machine has one vCPU");
  if (config.disks.size() != backends.disk_count() || config.nics.size() != backends.nic_count()) {
    throw UsageError("machine config: its disks and NICs are not those given on this host");
  }
}

// What a program can see of the system registers, and what every processor keeps in the same way. The selectors of FS and
// GS are not among them: a KVM that virtualizes in software goes on telling the first ones after the guest loaded others.
std::array<std::uint64_t, 15> visible(const kvm_sregs& s) {
  return {s.cs.selector, s.ss.selector, s.ds.selector, s.es.selector, s.tr.selector, s.fs.base, s.gs.base, s.tr.base,
          s.gdt.base,    s.idt.base,    s.cr0,         s.cr3,         s.cr4,         s.efer,    s.cs.dpl};
}

const char* name_of(EpochBoundary boundary) {
  switch (boundary) {
    case EpochBoundary::kExpired: return "its count was used up";
    case EpochBoundary::kWaited: return "the guest waits";
    case EpochBoundary::kEnded: return "the machine ended";
  }
  return "?";
}

// Where pages can be left unprotected, they are: most of an epoch's pages are written in the next one, too, and looking
// at them costs far less than the fault that would tell of it (PageDigests::kColdAfter).
kvm::Reprotect reprotection(const kvm::System& system) {
  return kvm::Vm::can_protect_by_call(system) ? kvm::Reprotect::kByCall : kvm::Reprotect::kByHarvest;
}

class DeterministicVm final : public DeterministicMachine {
 public:
  DeterministicVm(const MachineConfig& config, std::unique_ptr<GuestMemory> memory, Backends& backends, InputGate& input,
       OutputGate& output, const DeterministicOptions& options)
      : config_(config),
        options_(options),
        memory_(std::move(memory)),
        backends_(backends),
        input_(input),
        vm_(system_, *memory_, options.dirty_log, kvm::Irqchip::kNone, reprotection(system_)),
        environment_(input),
        output_(output),
        devices_(config, *memory_, environment_, output_, inbox_),
        epoch_device_(environment_, *memory_, output_),
        pages_(vm_, *memory_),
        io_("io") {
    devices_.add_to(bus_);
    bus_.add(guest_abi::kEpochDevice, guest_abi::kEpochDeviceBytes, epoch_device_);
    input_.attach(inbox_);
  }
  ~DeterministicVm() override {
    if (!paused_) pause();
    io_.stop();
  }

  void boot(const BootSource& source);
  void restore(ByteView state);

  [[nodiscard]] const MachineConfig& config() const override { return config_; }
  [[nodiscard]] GuestMemory& memory() override { return *memory_; }
  [[nodiscard]] DirtyLog dirty_log() const override { return vm_.dirty_log(); }

  void resume() override;
  void pause() override;
  [[nodiscard]] bool paused() const override { return paused_; }
  void start_dirty_tracking() override;
  void stop_dirty_tracking() override;
  std::vector<Gfn> harvest_dirty_pages() override;
  void announce() override;
  Bytes save() override;
  [[nodiscard]] std::optional<Clock::time_point> first_entry() const override;
  std::optional<MachineExit> wait_for_exit(std::chrono::milliseconds timeout) override;
  void request_exit() override;

  [[nodiscard]] EpochNumber epoch() const override { return epoch_; }
  [[nodiscard]] const std::optional<MachineExit>& exit() const override { return exit_; }
  EpochEnd record_epoch(EpochLength length) override;
  EpochEnd replay_epoch(const EpochInputs& inputs) override;
  void interrupt() override;
  void promote() override;
  std::vector<Gfn> altered_pages() override;
  std::unique_ptr<GuestMemory> give_up_memory() override;

 private:
  enum class Ran { kBoundary, kStopped, kExhausted, kStuck };

  // This thread may be kicked while there is one: also when KVM fails, nobody kicks a thread that may be gone.
  class Inside {
   public:
    explicit Inside(DeterministicVm& vm) : vm_(vm) {
      const std::lock_guard lock(vm_.runner_mutex_);
      vm_.inside_ = ::pthread_self();
      if (!vm_.first_entry_) vm_.first_entry_ = Clock::now();
    }
    ~Inside() {
      const std::lock_guard lock(vm_.runner_mutex_);
      vm_.inside_.reset();
    }
    Inside(const Inside&) = delete;
    Inside& operator=(const Inside&) = delete;

   private:
    DeterministicVm& vm_;
  };

  void create_vcpu(kvm::CpuidTable cpuid);

  bool run_free_epoch();
  void publish(MachineExit exit);
  [[nodiscard]] bool is_exit_published();

  void begin(EpochLength length);
  [[nodiscard]] bool settle();
  EpochEnd record(EpochLength length);
  EpochEnd run(const EpochInputs* recorded);
  [[nodiscard]] Ran run_guest();
  [[nodiscard]] Ran run_to_boundary();
  [[nodiscard]] bool run_vcpu();
  [[nodiscard]] bool is_stuck();
  void kick();
  void handle_exit();
  void handle_memory();
  void end(ExitReason reason, std::string detail);

  void finish(const EpochInputs* recorded, EpochEnd& end);
  void gather(EpochInputs& inputs);
  [[nodiscard]] bool may_block() const;
  void deliver(const EpochInputs& inputs, EpochEnd& end);
  void raise_events(std::chrono::nanoseconds clock);
  [[nodiscard]] EpochDigest digest();
  [[nodiscard]] Digest register_digest();
  [[nodiscard]] kvm_regs registers() const;

  // What the machine is doing, in its flags; no other combination occurs outside of a call.
  //
  //   paused_  under_way_  exit_  the machine
  //   yes      no          no     stands between two epochs: anything may be asked of it
  //   yes      no          yes    has ended: its epochs are empty
  //   yes      yes         no     stands in the midst of an epoch. Stopped, or stuck: the same call goes on with it. Diverged, or
  //                               KVM failed: its memory is all that can still be had of it
  //   no       any         any    runs freely: everything but the atomics is the FreeRunner's thread's
  //
  // Besides: park_requested_ is set only in pause(), while not paused_. restored_ is set from restore() to the first epoch,
  // and interrupt_pending_ only while not under_way_. stop_ may be set at any time: whoever runs next takes it. The end of
  // a machine that runs freely (published_exit_) is its exit_, or a failure of the host or a request from outside, which are
  // not the guest's.
  MachineConfig config_;
  DeterministicOptions options_;
  std::unique_ptr<GuestMemory> memory_;
  Backends& backends_;
  InputGate& input_;
  kvm::System system_;
  kvm::Vm vm_;
  Inbox inbox_;
  Environment environment_;
  DeterministicOutput output_;
  DeterministicDevices devices_;
  EpochDevice epoch_device_;
  Bus bus_;
  PageTracker pages_;
  kvm::CpuidTable cpuid_;
  std::unique_ptr<kvm::Vcpu> vcpu_;
  std::unique_ptr<EpochClock> clock_;
  bool synced_ = false;  // the vCPU leaves its registers in its run area

  EpochNumber epoch_;
  bool under_way_ = false;  // the epoch was begun
  EpochLength length_;      // of the epoch under way
  std::optional<EpochBoundary> boundary_;
  bool interrupt_pending_ = false;
  std::uint64_t events_ = 0;  // raised while there was no event word
  std::optional<MachineExit> exit_;
  EpochTimes times_;

  std::atomic<bool> stop_ = false;
  mutable std::mutex runner_mutex_;
  std::optional<pthread_t> inside_;  // guarded by runner_mutex_: the thread inside run_guest()
  EpochWatch watch_{options_.longest_epoch, [this] { kick(); }};

  std::atomic<bool> paused_ = true;
  std::atomic<bool> park_requested_ = false;  // a guest that waits is not let wait any more
  bool restored_ = false;                     // and has run no epoch since

  std::mutex exit_mutex_;
  std::condition_variable exited_;
  std::optional<MachineExit> published_exit_;  // guarded by exit_mutex_
  std::optional<Clock::time_point> first_entry_;  // guarded by runner_mutex_

  FreeRunner runner_{[this] { return run_free_epoch(); }};
  bool listening_ = false;
  EventLoop io_;  // last: its thread offers to the gate, and so to the inbox
};

// --- Made ---

void DeterministicVm::create_vcpu(kvm::CpuidTable cpuid) {
  cpuid_ = std::move(cpuid);
  vcpu_ = std::make_unique<kvm::Vcpu>(vm_, 0, cpuid_);
  clock_ = std::make_unique<SoftwareEpochClock>(*vcpu_);
  pages_.attach(*vcpu_);
  synced_ = vcpu_->sync_registers();
}

void DeterministicVm::boot(const BootSource& source) {
  const GuestAddress entry = boot::load_guest(config_, source, *memory_);
  create_vcpu(kvm::deterministic_cpuid(system_.supported_cpuid()));
  kvm_sregs2 system = boot::long_mode_system_registers(vcpu_->system_registers());
  system.cr4 |= kTimeStampDisable;  // from the first instruction on; the runtime keeps it
  vcpu_->set_system_registers(system);
  vcpu_->set_registers(boot::entry_registers(entry));
  pages_.know_fresh_memory();
}

void DeterministicVm::restore(ByteView bytes) {
  ReceivedMessage message("deterministic machine state", bytes);
  message.read<schema::DeterministicState>([this](schema::DeterministicState::Reader state) {
    if (state.getVersion() != kStateVersion) {
      throw Error(fmt::format("deterministic machine state: version {}, and this program reads {}",
                              state.getVersion(), kStateVersion));
    }
    if (read_config(state.getConfig()) != config_) {
      throw Error("deterministic machine state: of a machine with another configuration");
    }
    create_vcpu(read_cpuid(state.getCpuid()));
    vcpu_->restore(read_vcpu(state.getVcpu()), 0);
    epoch_ = {state.getEpoch()};
    interrupt_pending_ = state.getInterruptPending();
    clock_->restore(state.getCountDue());
    environment_.see_clock(std::chrono::nanoseconds(state.getClockNs()));
    epoch_device_.restore({state.getTimerNs(), state.getEventWord()});
    events_ = state.getEvents();
    devices_.restore(state);
    exit_ = read_exit(state.getExit());
  });
  restored_ = true;
  if (exit_) publish(*exit_);
}

// --- An epoch ---

EpochEnd DeterministicVm::record_epoch(EpochLength length) {
  POLLUX_ASSERT(paused_);
  pages_.know_digests();
  return record(length);
}

EpochEnd DeterministicVm::record(EpochLength length) {
  if (!std::exchange(listening_, true)) listen(backends_, input_, io_);
  devices_.perform_concurrently(options_.disks == DiskMode::kConcurrent);
  if (!under_way_) {
    environment_.record();
    begin(length);
  }
  return run(nullptr);
}

EpochEnd DeterministicVm::replay_epoch(const EpochInputs& inputs) {
  POLLUX_ASSERT(paused_);
  pages_.know_digests();
  devices_.perform_concurrently(false);
  if (!under_way_) {
    environment_.replay(inputs.environment);
    begin(inputs.length);
  }
  return run(&inputs);
}

void DeterministicVm::begin(EpochLength length) {
  if (std::exchange(restored_, false)) devices_.resume_after_restore();
  under_way_ = true;
  watch_.begin_epoch();
  boundary_.reset();
  times_ = {};
  const Timed timed(times_.inject);
  length_ = length;
  clock_->start(length);
  if (!interrupt_pending_ || exit_ || !settle()) return;
  vcpu_->interrupt(guest_abi::kEventVector);
  interrupt_pending_ = false;
}

// False: the machine ended instead.
bool DeterministicVm::settle() {
  if (clock_->settle()) return true;
  end(ExitReason::kCrash, "an instruction accesses the epoch device more than once");
  return false;
}

EpochEnd DeterministicVm::run(const EpochInputs* recorded) {
  EpochEnd end;
  end.number = epoch_;
  switch (run_guest()) {
    case Ran::kStopped: end.why = EpochEnd::Why::kStopped; return end;
    case Ran::kStuck:
      end.why = recorded != nullptr ? EpochEnd::Why::kDiverged : EpochEnd::Why::kStuck;
      end.divergence = fmt::format("it does not end: the guest had {} ms", options_.longest_epoch.count());
      return end;
    case Ran::kBoundary:
    case Ran::kExhausted: break;
  }
  finish(recorded, end);
  end.times = times_;
  return end;
}

DeterministicVm::Ran DeterministicVm::run_guest() {
  kvm::accept_kicks();
  watch_.enter();
  Ran ran{};
  {
    const Inside inside(*this);
    ran = run_to_boundary();
  }
  if (ran == Ran::kStopped) watch_.leave();
  return ran;
}

DeterministicVm::Ran DeterministicVm::run_to_boundary() {
  if (exit_) boundary_ = EpochBoundary::kEnded;
  while (!boundary_) {
    if (!run_vcpu()) return Ran::kStopped;
    if (environment_.exhausted()) return Ran::kExhausted;
    if (!boundary_ && is_stuck()) return Ran::kStuck;
  }
  return Ran::kBoundary;
}

// A guest that nobody waits for may go on as long as it likes.
bool DeterministicVm::is_stuck() { return watch_.is_over() && (paused_ || park_requested_); }

// Up to the next exit. False: interrupt() was called.
bool DeterministicVm::run_vcpu() {
  // In this order: whoever sets stop_ afterwards denies it again.
  vcpu_->allow_run();
  if (stop_.exchange(false)) return false;
  kvm::Vcpu::Ran ran{};
  {
    const Timed timed(times_.guest);
    ran = vcpu_->run();
  }
  clock_->entered();
  if (ran == kvm::Vcpu::Ran::kInterrupted) return true;
  ++times_.exits;
  handle_exit();
  return true;
}

void DeterministicVm::handle_exit() {
  const kvm_run& area = vcpu_->run_area();
  switch (area.exit_reason) {
    case KVM_EXIT_MMIO: return handle_memory();
    case KVM_EXIT_IO: {  // no port is anybody's
      const auto& io = area.io;
      if (io.direction == KVM_EXIT_IO_IN) {
        std::memset(vcpu_->run_bytes() + io.data_offset, 0xff, std::size_t{io.size} * io.count);
      }
      return;
    }
    case KVM_EXIT_DIRTY_RING_FULL: return pages_.make_room();
    case KVM_EXIT_INTR:
    case KVM_EXIT_IRQ_WINDOW_OPEN:
    case KVM_EXIT_SET_TPR: return;
    case KVM_EXIT_HLT: return end(ExitReason::kCrash, "the guest halted");
    case KVM_EXIT_SHUTDOWN: return end(ExitReason::kCrash, "triple fault");
    case KVM_EXIT_FAIL_ENTRY:
      return end(ExitReason::kHostFailed, fmt::format("entry failed, hardware reason {:#x}",
                                                      area.fail_entry.hardware_entry_failure_reason));
    case KVM_EXIT_INTERNAL_ERROR:
      // An instruction that KVM cannot emulate is the guest's choice, and no other host would do better.
      return end(area.internal.suberror == KVM_INTERNAL_ERROR_EMULATION ? ExitReason::kCrash : ExitReason::kHostFailed,
                 fmt::format("KVM internal error {} at rip {:#x}", area.internal.suberror, vcpu_->registers().rip));
    default: return end(ExitReason::kCrash, fmt::format("unexpected exit {} of KVM", area.exit_reason));
  }
}

void DeterministicVm::handle_memory() {
  auto& mmio = vcpu_->run_area().mmio;
  const MutableByteView data(reinterpret_cast<std::byte*>(mmio.data),
                             std::min<std::size_t>(mmio.len, sizeof mmio.data));
  if (mmio.is_write != 0) {
    bus_.write(mmio.phys_addr, data);
  } else {
    bus_.read(mmio.phys_addr, data);
  }
  const EpochDevice::Request request = epoch_device_.take_request();
  if (const auto boundary = clock_->boundary(request)) boundary_ = boundary;
  if (request == EpochDevice::Request::kPowerOff) {
    const std::uint32_t code = epoch_device_.exit_code();
    end(ExitReason::kPowerOff, code == 0 ? "" : fmt::format("the guest failed with code {:#x}", code));
  }
  if (environment_.excessive()) end(ExitReason::kCrash, "the guest asks for too many environment values");
}

void DeterministicVm::end(ExitReason reason, std::string detail) {
  if (!exit_) exit_ = MachineExit{reason, std::move(detail)};
  boundary_ = EpochBoundary::kEnded;
}

void DeterministicVm::interrupt() {
  stop_ = true;
  vcpu_->deny_run();
  kick();
  inbox_.wake();
}

// Out of the guest, if it is in there.
void DeterministicVm::kick() {
  const std::lock_guard lock(runner_mutex_);
  if (inside_) ::pthread_kill(*inside_, kvm::kick_signal());
}

// --- Its end ---

void DeterministicVm::finish(const EpochInputs* recorded, EpochEnd& end) {
  const auto diverged = [&end](std::string how) {
    end.why = EpochEnd::Why::kDiverged;
    end.divergence = std::move(how);
  };
  EpochInputs inputs;
  {
    const Timed timed(times_.serve);
    if (!environment_.exhausted()) {
      if (recorded != nullptr && recorded->boundary != *boundary_) {
        return diverged(fmt::format("it ended because {}, and not because {}", name_of(*boundary_),
                                    name_of(recorded->boundary)));
      }
      devices_.serve();
      epoch_device_.flush();
    }
    if (environment_.exhausted()) {
      return diverged(fmt::format("it asks for more than the {} environment values recorded", environment_.used()));
    }
    if (recorded != nullptr && environment_.used() != recorded->environment.size()) {
      return diverged(fmt::format("it asks for {} of the {} environment values recorded", environment_.used(),
                                  recorded->environment.size()));
    }
  }
  if (recorded == nullptr) {
    inputs.length = length_;
    inputs.boundary = *boundary_;
    gather(inputs);
    inputs.environment = environment_.take_recorded();
  }
  deliver(recorded != nullptr ? *recorded : inputs, end);
  if (end.why == EpochEnd::Why::kDiverged) return;
  end.inputs = std::move(inputs);
  devices_.settle();
  end.output = output_.take_emitted();
  if (paused_) end.digest = digest();
  under_way_ = false;
  ++epoch_.value;
  if (exit_) publish(*exit_);
}

void DeterministicVm::gather(EpochInputs& inputs) {
  for (;;) {
    inputs.clock = environment_.host_clock();
    if (inputs.boundary == EpochBoundary::kEnded) return;
    inputs.completions = devices_.performed();
    inputs.arrivals = inbox_.take();
    const std::uint64_t timer = epoch_device_.state().timer_ns;
    const auto now = static_cast<std::uint64_t>(inputs.clock.count());
    const bool due = timer != 0 && timer <= now;
    const bool waits = inputs.boundary == EpochBoundary::kWaited && may_block();
    if (!waits || due || !inputs.completions.empty() || !inputs.arrivals.empty()) return;
    if (park_requested_ || stop_.exchange(false)) return;
    constexpr std::uint64_t kHour = 3'600'000'000'000;
    std::optional<std::chrono::nanoseconds> limit;
    if (timer != 0) limit = std::chrono::nanoseconds(std::min(timer - now, kHour));
    const Timed timed(times_.waited);
    inbox_.wait(limit);
  }
}

// A guest that waits is let wait only if nobody could be waiting for what it did, and it has seen everything.
bool DeterministicVm::may_block() const {
  return !output_.emitted() && !devices_.events_raised() && !epoch_device_.events_waiting();
}

void DeterministicVm::deliver(const EpochInputs& inputs, EpochEnd& end) {
  const Timed timed(times_.serve);
  environment_.see_clock(inputs.clock);
  if (*boundary_ == EpochBoundary::kEnded) return;
  std::optional<std::string> wrong;
  for (const DiskCompletion& completion : inputs.completions) {
    if (!wrong) wrong = devices_.complete(completion);
  }
  for (const Arrival& arrival : inputs.arrivals) {
    if (!wrong && !devices_.deliver(arrival)) wrong = "something arrives for a device that is not there";
  }
  if (wrong) {
    end.why = EpochEnd::Why::kDiverged;
    end.divergence = std::move(*wrong);
    return;
  }
  raise_events(inputs.clock);
}

void DeterministicVm::raise_events(std::chrono::nanoseconds clock) {
  events_ |= devices_.take_events();
  if (epoch_device_.take_timer(clock)) events_ |= guest_abi::kTimerEvent;
  if (events_ == 0 || !epoch_device_.raise(events_)) return;
  events_ = 0;
  if (registers().rflags & kInterruptFlag) interrupt_pending_ = true;
}

EpochDigest DeterministicVm::digest() {
  std::vector<Gfn> suspects;
  {
    const Timed timed(times_.harvest);
    suspects = pages_.take_suspects();
  }
  const Timed timed(times_.digest);
  EpochDigest digest;
  digest.registers = register_digest();
  struct {
    Digest virtio;
    EpochDevice::State epoch_device;
    std::uint64_t clock, events, interrupt_pending;
  } const devices{devices_.digest(), epoch_device_.state(),
                  static_cast<std::uint64_t>(environment_.last_clock().count()), events_, interrupt_pending_};
  digest.devices = digest_of(bytes_of(devices));
  PageDigests::Update update = pages_.update(suspects);
  digest.memory = update.memory;
  digest.pages = std::move(update.changed);
  return digest;
}

kvm_regs DeterministicVm::registers() const {
  return synced_ ? vcpu_->synced().regs : vcpu_->registers();
}

// As they are while the access that ends the epoch is not completed.
Digest DeterministicVm::register_digest() {
  struct {
    kvm_regs general;
    std::array<std::uint64_t, 15> system;
  } all{registers(), {}};
  all.general.rflags &= ~kResumeFlag;
  if (synced_) {
    all.system = visible(vcpu_->synced().sregs);
  } else {
    all.system = visible(vcpu_->basic_system_registers());
  }
  return digest_of(bytes_of(all));
}

// --- Between epochs ---

void DeterministicVm::promote() {
  POLLUX_ASSERT(!under_way_);
  devices_.make_uncertain();
  const std::lock_guard lock(runner_mutex_);
  first_entry_.reset();  // of what runs by itself now
}

std::vector<Gfn> DeterministicVm::altered_pages() {
  POLLUX_ASSERT(paused_);
  return pages_.altered();
}

std::unique_ptr<GuestMemory> DeterministicVm::give_up_memory() {
  POLLUX_ASSERT(paused_);
  return std::move(memory_);
}

void DeterministicVm::announce() {
  POLLUX_ASSERT(paused_ && !under_way_);
  for (const auto& [nic, frame] : devices_.announcements()) (void)output_.transmit(nic, frame);
}

Bytes DeterministicVm::save() {
  POLLUX_ASSERT(paused_);
  // After a failure of this host's, or a replay that went another way.
  if (under_way_) throw Error("save machine: it stopped in the midst of an epoch");
  if (!exit_ && !settle()) throw Error("save machine: " + exit_->detail);
  capnp::MallocMessageBuilder message;
  auto state = message.initRoot<schema::DeterministicState>();
  state.setVersion(kStateVersion);
  write_config(config_, state.initConfig());
  state.setCpuid(cpuid_data(cpuid_));
  write_vcpu(vcpu_->capture(), state.initVcpu());
  state.setEpoch(epoch_.value);
  state.setInterruptPending(interrupt_pending_);
  state.setCountDue(clock_->is_due());
  state.setClockNs(environment_.last_clock().count());
  state.setTimerNs(epoch_device_.state().timer_ns);
  state.setEventWord(epoch_device_.state().event_word);
  state.setEvents(events_);
  devices_.save(state);
  write_exit(exit_, state.initExit());
  return to_bytes(message);
}

// --- Running freely ---

void DeterministicVm::resume() {
  POLLUX_ASSERT(paused_ && (!under_way_ || is_exit_published()));
  pages_.forget_digests();
  paused_ = false;
  runner_.unpark();
}

void DeterministicVm::pause() {
  POLLUX_ASSERT(!paused_);
  runner_.request_park();
  park_requested_ = true;
  inbox_.wake();
  runner_.wait_parked();
  park_requested_ = false;
  paused_ = true;
}

// On the runner's thread. False: the machine ended.
bool DeterministicVm::run_free_epoch() {
  try {
    while (under_way_ || (!exit_ && !is_exit_published())) {
      switch (record(options_.epoch_length).why) {
        case EpochEnd::Why::kStopped: break;
        case EpochEnd::Why::kStuck: end(ExitReason::kCrash, "the guest does not end its epochs"); break;
        case EpochEnd::Why::kEpochEnd:
        case EpochEnd::Why::kDiverged: return true;
      }
    }
  } catch (const std::exception& error) {
    publish({ExitReason::kHostFailed, error.what()});
  }
  return false;
}

void DeterministicVm::publish(MachineExit exit) {
  const std::lock_guard lock(exit_mutex_);
  if (published_exit_) return;
  published_exit_ = std::move(exit);
  exited_.notify_all();
}

bool DeterministicVm::is_exit_published() {
  const std::lock_guard lock(exit_mutex_);
  return published_exit_.has_value();
}

std::optional<MachineExit> DeterministicVm::wait_for_exit(std::chrono::milliseconds timeout) {
  std::unique_lock lock(exit_mutex_);
  // Even a wait that is over at once sets a timer, which a nested virtual machine pays with 100 us.
  if (timeout > std::chrono::milliseconds(0)) exited_.wait_for(lock, timeout, [this] { return published_exit_.has_value(); });
  return published_exit_;
}

void DeterministicVm::request_exit() {
  publish({ExitReason::kRequested, ""});
  inbox_.wake();
}

std::optional<Clock::time_point> DeterministicVm::first_entry() const {
  const std::lock_guard lock(runner_mutex_);
  return first_entry_;
}

void DeterministicVm::start_dirty_tracking() {
  POLLUX_ASSERT(paused_);
  pages_.start();
}

void DeterministicVm::stop_dirty_tracking() {
  POLLUX_ASSERT(paused_);
  pages_.stop();
}

std::vector<Gfn> DeterministicVm::harvest_dirty_pages() {
  POLLUX_ASSERT(paused_);
  return pages_.harvest();
}

}  // namespace

// --- The class ---

std::unique_ptr<DeterministicMachine> DeterministicMachine::boot(const MachineConfig& config,
                                                                 const BootSource& source, Backends& backends,
                                                                 InputGate& input, OutputGate& output,
                                                                 const DeterministicOptions& options) {
  check_usable(config, backends);
  auto machine = std::make_unique<DeterministicVm>(config, std::make_unique<GuestMemory>(config.memory_bytes), backends, input,
                                     output, options);
  machine->boot(source);
  return machine;
}

std::unique_ptr<DeterministicMachine> DeterministicMachine::restore(
    const MachineConfig& config, std::unique_ptr<GuestMemory> memory, ByteView state, Backends& backends,
    InputGate& input, OutputGate& output, const DeterministicOptions& options) {
  check_usable(config, backends);
  if (memory->size() != config.memory_bytes) {
    throw Error("deterministic machine state: its memory has another size");
  }
  auto machine = std::make_unique<DeterministicVm>(config, std::move(memory), backends, input, output, options);
  machine->restore(state);
  return machine;
}

}  // namespace pollux::vmm
