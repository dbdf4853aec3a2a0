// The thread that runs one vCPU, and the protocol by which it is stopped.
//
// A vCPU is *parked* when its thread is out of KVM_RUN with no I/O half done: KVM completes the instruction
// behind a PIO or MMIO exit only on the next entry (Documentation/virt/kvm/api.rst, KVM_RUN), so before it
// parks the thread enters once more with immediate_exit set. Only then can the vCPU's state be read as a
// whole.
#pragma once

#include <atomic>
#include <condition_variable>
#include <functional>
#include <mutex>
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
  // Starts parked. `ended` is called on this thread when the guest can go on no more.
  VcpuThread(kvm::Vm& vm, kvm::Vcpu& vcpu, const Buses& buses, std::function<void(MachineExit)> ended);
  ~VcpuThread();  // stops the thread, wherever it is
  VcpuThread(const VcpuThread&) = delete;
  VcpuThread& operator=(const VcpuThread&) = delete;

  void unpark();
  // Asks; parks soon. From any thread.
  void request_park();
  void wait_parked();
  // As request_park(), for good: unpark() has no effect any more. From any thread, also this one.
  void halt();

 private:
  void main();
  void run_until_kicked();
  void handle_exit();
  void handle_ports();
  void handle_memory();
  void handle_system_event();
  void handle_internal_error();
  void crash(const std::string& detail);
  void kick();
  [[nodiscard]] bool may_run() const { return wanted_running_ && !halted_ && !stopping_; }
  [[nodiscard]] bool must_park();

  kvm::Vm& vm_;
  kvm::Vcpu& vcpu_;
  const Buses& buses_;
  std::function<void(MachineExit)> ended_;

  std::mutex mutex_;
  std::condition_variable changed_;
  // Guarded by mutex_.
  bool wanted_running_ = false;
  bool halted_ = false;
  bool stopping_ = false;
  std::atomic<bool> parked_ = false;  // written under mutex_; read without by wait_parked()

  std::thread thread_;  // last: it uses everything above
};

}  // namespace pollux::vmm
