// The thread that runs one vCPU, and the protocol by which it is stopped.
//
// A vCPU is *parked* when its thread is out of KVM_RUN with no I/O half done: KVM completes the instruction
// behind a PIO or MMIO exit only on the next entry (Documentation/virt/kvm/api.rst, KVM_RUN), so before it
// parks the thread enters once more with immediate_exit set. Only then can the vCPU's state be read as a
// whole. The parked thread reads it itself: its processor has the state loaded, and all vCPUs are read at once while
// the controlling thread copies pages. If it has not begun when the state is needed, the controlling thread reads: on
// a busy host the other may not have got a processor.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <exception>
#include <functional>
#include <mutex>
#include <optional>
#include <thread>

#include "vmm/kvm/vcpu.h"
#include "vmm/machine/bus.h"
#include "vmm/machine/machine.h"

namespace pollux::vmm {

struct Buses {
  Bus ports;
  Bus memory;
};

class VcpuThread {
 public:
  // Starts parked. `ended` is called on this thread when the guest can go on no more. `may_spin`: the host has
  // processors enough for threads that wait awake.
  VcpuThread(kvm::Vm& vm, kvm::Vcpu& vcpu, const Buses& buses, bool may_spin,
             std::function<void(MachineExit)> ended);
  ~VcpuThread();  // stops the thread, wherever it is
  VcpuThread(const VcpuThread&) = delete;
  VcpuThread& operator=(const VcpuThread&) = delete;

  void unpark();
  // Asks; parks soon. From any thread.
  void request_park();
  void wait_parked();
  // While parked, from the controlling thread: has the state read out, unless that was done since it parked. Every
  // vCPU must be parked and every device frozen: an interrupt that came later would be missing.
  void start_capture();
  // The state of the last start_capture(), valid until unpark(). Throws KvmError when KVM refused to tell it.
  const kvm::VcpuState& wait_captured();
  // As request_park(), for good: unpark() has no effect any more. From any thread, also this one.
  void halt();
  // Any thread: when this vCPU entered the guest for the first time.
  [[nodiscard]] std::optional<std::chrono::steady_clock::time_point> first_entry() const;

 private:
  enum class Order { kStop, kCapture, kRun };
  enum class Capture { kNone, kWanted, kUnderWay, kDone };

  void main();
  [[nodiscard]] Order park();
  [[nodiscard]] bool begin_capture();
  void capture();
  template <class Condition>
  void spin_until(Condition&& condition) const;
  void run_until_kicked();
  void handle_exit();
  void handle_ports();
  void handle_memory();
  void handle_system_event();
  void handle_internal_error();
  void crash(const std::string& detail);
  void host_failed(const std::string& detail);
  void kick();
  [[nodiscard]] bool may_run() const { return wanted_running_ && !halted_ && !stopping_; }
  [[nodiscard]] bool must_park();

  kvm::Vm& vm_;
  kvm::Vcpu& vcpu_;
  const Buses& buses_;
  const bool may_spin_;
  std::function<void(MachineExit)> ended_;

  mutable std::mutex mutex_;
  std::condition_variable changed_;
  // Guarded by mutex_; the atomics are written under it and read without by those who wait awake.
  bool wanted_running_ = false;
  bool halted_ = false;
  bool stopping_ = false;
  std::atomic<bool> parked_ = false;
  std::atomic<bool> ordered_ = false;  // something changed that the parked thread waits for
  std::atomic<Capture> capture_ = Capture::kNone;
  const kvm::VcpuState* captured_ = nullptr;
  std::exception_ptr capture_error_;
  std::optional<std::chrono::steady_clock::time_point> first_entry_;

  std::thread thread_;  // last: it uses everything above
};

}  // namespace pollux::vmm
