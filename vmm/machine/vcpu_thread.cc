#include "vmm/machine/vcpu_thread.h"

#include <fmt/format.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>

#include <chrono>
#include <exception>
#include <string>

#include "base/thread_name.h"
#include "vmm/kvm/kick_signal.h"

namespace pollux::vmm {
VcpuThread::VcpuThread(kvm::Vm& vm, kvm::Vcpu& vcpu, const Buses& buses, bool may_spin,
                       std::function<void(MachineExit)> ended)
    : vm_(vm), vcpu_(vcpu), buses_(buses), may_spin_(may_spin), ended_(std::move(ended)) {
  kvm::install_kick_handler();
  vcpu_.deny_run();
  thread_ = std::thread([this] { main(); });
}

VcpuThread::~VcpuThread() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
    ordered_ = true;
    kick();
  }
  changed_.notify_all();
  thread_.join();
}

void VcpuThread::unpark() {
  {
    std::unique_lock lock(mutex_);
    // What was read out is stale as soon as devices may interrupt, even if the vCPU never got to run.
    changed_.wait(lock, [this] { return capture_ != Capture::kUnderWay; });
    capture_ = Capture::kNone;
    wanted_running_ = true;
    ordered_ = true;
    if (may_run()) vcpu_.allow_run();
  }
  changed_.notify_all();
}

void VcpuThread::request_park() {
  const std::lock_guard lock(mutex_);
  wanted_running_ = false;
  kick();
}

void VcpuThread::halt() {
  const std::lock_guard lock(mutex_);
  halted_ = true;
  kick();
}

// Parking, capturing and resuming take tens of microseconds each, all of them in the guest's pause. A thread that
// sleeps meanwhile is woken later than that, above all in a virtual machine, where an idle processor is woken through
// its hypervisor.
template <class Condition>
void VcpuThread::spin_until(Condition&& condition) const {
  constexpr auto kSpin = std::chrono::microseconds(200);
  constexpr auto kPolite = std::chrono::microseconds(50);  // then others that want this processor go first
  if (!may_spin_) return;
  const auto start = std::chrono::steady_clock::now();
  while (!condition()) {
    const auto waited = std::chrono::steady_clock::now() - start;
    if (waited > kSpin) return;
    if (waited > kPolite) {
      ::sched_yield();
    } else {
      __builtin_ia32_pause();
    }
  }
}

std::optional<std::chrono::steady_clock::time_point> VcpuThread::first_entry() const {
  const std::lock_guard lock(mutex_);
  return first_entry_;
}

void VcpuThread::wait_parked() {
  spin_until([this] { return parked_.load(std::memory_order_acquire); });
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [this] { return parked_.load(); });
}

void VcpuThread::start_capture() {
  {
    const std::lock_guard lock(mutex_);
    POLLUX_ASSERT(parked_);
    if (capture_ != Capture::kNone) return;
    capture_ = Capture::kWanted;
    ordered_ = true;
  }
  changed_.notify_all();
}

const kvm::VcpuState& VcpuThread::wait_captured() {
  if (begin_capture()) capture();
  spin_until([this] { return capture_.load(std::memory_order_acquire) == Capture::kDone; });
  std::unique_lock lock(mutex_);
  POLLUX_ASSERT(capture_ != Capture::kNone);
  changed_.wait(lock, [this] { return capture_ == Capture::kDone; });
  if (capture_error_) std::rethrow_exception(capture_error_);
  return *captured_;
}

// With mutex_ held. immediate_exit catches a thread that is just about to enter, the signal one that is
// inside.
void VcpuThread::kick() {
  vcpu_.deny_run();
  if (!parked_ && thread_.joinable()) ::pthread_kill(thread_.native_handle(), kvm::kick_signal());
}

bool VcpuThread::must_park() {
  const std::lock_guard lock(mutex_);
  return !may_run();
}

void VcpuThread::main() {
  kvm::accept_only_kicks();
  name_this_thread(fmt::format("vcpu {}", vcpu_.id()));
  for (;;) {
    switch (park()) {
      case Order::kStop: return;
      case Order::kCapture:
        if (begin_capture()) capture();
        break;
      case Order::kRun:
        try {
          run_until_kicked();
        } catch (const std::exception& error) {
          host_failed(error.what());
        }
    }
  }
}

VcpuThread::Order VcpuThread::park() {
  {
    const std::lock_guard lock(mutex_);
    parked_ = true;
  }
  changed_.notify_all();
  spin_until([this] { return ordered_.load(std::memory_order_acquire); });
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [this] { return stopping_ || capture_ == Capture::kWanted || may_run(); });
  ordered_ = false;
  if (stopping_) return Order::kStop;
  if (capture_ == Capture::kWanted) return Order::kCapture;
  parked_ = false;
  if (!first_entry_) first_entry_ = std::chrono::steady_clock::now();
  return Order::kRun;
}

// False: another thread has begun.
bool VcpuThread::begin_capture() {
  const std::lock_guard lock(mutex_);
  if (capture_ != Capture::kWanted) return false;
  capture_ = Capture::kUnderWay;
  return true;
}

void VcpuThread::capture() {
  const kvm::VcpuState* state = nullptr;
  std::exception_ptr refused;
  try {
    state = &vcpu_.capture();
  } catch (const std::exception&) {
    refused = std::current_exception();
  }
  {
    const std::lock_guard lock(mutex_);
    captured_ = state;
    capture_error_ = refused;
    capture_ = Capture::kDone;
  }
  changed_.notify_all();
}

void VcpuThread::run_until_kicked() {
  for (;;) {
    if (vcpu_.run() == kvm::Vcpu::Ran::kExited) {
      handle_exit();
    } else if (must_park()) {
      return;
    }
  }
}

void VcpuThread::crash(const std::string& detail) {
  ended_({ExitReason::kCrash, fmt::format("vCPU {}: {}", vcpu_.id(), detail)});
}

void VcpuThread::host_failed(const std::string& detail) {
  ended_({ExitReason::kHostFailed, fmt::format("vCPU {}: {}", vcpu_.id(), detail)});
}

void VcpuThread::handle_exit() {
  const kvm_run& run = vcpu_.run_area();
  switch (run.exit_reason) {
    case KVM_EXIT_IO: return handle_ports();
    case KVM_EXIT_MMIO: return handle_memory();
    case KVM_EXIT_DIRTY_RING_FULL:
      if (vcpu_.dirty_ring().harvest(vm_)) vm_.reset_dirty_rings();
      return;
    case KVM_EXIT_HLT:  // the in-kernel APIC waits for interrupts itself; a stray one is harmless
    case KVM_EXIT_INTR:
    case KVM_EXIT_IRQ_WINDOW_OPEN:
    case KVM_EXIT_SET_TPR: return;
    case KVM_EXIT_SHUTDOWN: return crash("triple fault");
    case KVM_EXIT_SYSTEM_EVENT: return handle_system_event();
    case KVM_EXIT_FAIL_ENTRY:
      return host_failed(
          fmt::format("entry failed, hardware reason {:#x}", run.fail_entry.hardware_entry_failure_reason));
    case KVM_EXIT_INTERNAL_ERROR: return handle_internal_error();
    default: return crash(fmt::format("unexpected exit {} of KVM", run.exit_reason));
  }
}

void VcpuThread::handle_ports() {
  const auto& io = vcpu_.run_area().io;
  std::byte* data = vcpu_.run_bytes() + io.data_offset;
  for (std::uint32_t i = 0; i < io.count; ++i, data += io.size) {
    if (io.direction == KVM_EXIT_IO_IN) {
      buses_.ports.read(io.port, {data, io.size});
    } else {
      buses_.ports.write(io.port, {data, io.size});
    }
  }
}

void VcpuThread::handle_memory() {
  auto& mmio = vcpu_.run_area().mmio;
  const MutableByteView data(reinterpret_cast<std::byte*>(mmio.data),
                             std::min<std::size_t>(mmio.len, sizeof mmio.data));
  if (mmio.is_write != 0) {
    buses_.memory.write(mmio.phys_addr, data);
  } else {
    buses_.memory.read(mmio.phys_addr, data);
  }
}

void VcpuThread::handle_system_event() {
  switch (vcpu_.run_area().system_event.type) {
    case KVM_SYSTEM_EVENT_SHUTDOWN: return ended_({ExitReason::kPowerOff, ""});
    case KVM_SYSTEM_EVENT_RESET: return ended_({ExitReason::kReset, ""});
    default: return crash("the guest reported a crash");
  }
}

void VcpuThread::handle_internal_error() {
  const auto& internal = vcpu_.run_area().internal;
  const auto registers = vcpu_.registers();
  std::string data;
  for (std::uint32_t i = 0; i < std::min<std::uint32_t>(internal.ndata, 16); ++i) {
    data += fmt::format(" {:#x}", internal.data[i]);
  }
  const std::string detail =
      fmt::format("KVM internal error {} at rip {:#x}:{}", internal.suberror, registers.rip, data);
  // An instruction that KVM cannot emulate is the guest's choice, and no other host would do better.
  internal.suberror == KVM_INTERNAL_ERROR_EMULATION ? crash(detail) : host_failed(detail);
}

}  // namespace pollux::vmm
