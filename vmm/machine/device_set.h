// All devices of a machine, the threads that serve them, and their places on the buses.
#pragma once

#include <functional>
#include <memory>
#include <vector>

#include "vmm/devices/platform/i8042.h"
#include "vmm/devices/platform/power.h"
#include "vmm/devices/platform/rtc.h"
#include "vmm/devices/platform/serial.h"
#include "vmm/devices/virtio/virtio_console.h"
#include "vmm/devices/virtio/virtio_mmio.h"
#include "vmm/devices/virtio/virtio_net.h"
#include "vmm/gates/input_gate.h"
#include "vmm/io/event_loop.h"
#include "vmm/kvm/vm.h"
#include "vmm/machine/backends.h"
#include "vmm/machine/machine.h"
#include "vmm/machine/vcpu_thread.h"
#include "vmm/state/machine_state.capnp.h"

namespace pollux::vmm {

// Created frozen. All vCPU threads must have ended before it is destroyed.
class DeviceSet final : public ArrivalSink {
 public:
  // `ended`: the guest switched itself off or reset itself; called on a vCPU thread.
  DeviceSet(const MachineConfig& config, GuestMemory& memory, kvm::Vm& vm, Backends& backends,
            InputGate& input, OutputGate& output, std::function<void(MachineExit)> ended);
  ~DeviceSet() override;

  [[nodiscard]] const Buses& buses() const { return buses_; }

  void freeze();
  // The first thaw starts listening to the backends, and after restore() makes the devices go on.
  void thaw();

  // From any thread; waits while frozen.
  void deliver(Arrival arrival) override;

  // Only while frozen.
  void save(schema::MachineState::Builder state) const;
  void restore(schema::MachineState::Reader state);
  void announce();

 private:
  void add_disks(const MachineConfig& config);
  void add_nics(const MachineConfig& config);
  void add_virtio(const std::string& name, std::unique_ptr<VirtioFunction> function, EventLoop& loop);
  void add_doorbells(VirtioMmio& device, std::uint32_t slot, EventLoop& loop);
  [[nodiscard]] InterruptLine& line(kvm::Gsi gsi);
  [[nodiscard]] std::vector<BusDevice*> all();

  GuestMemory& memory_;
  kvm::Vm& vm_;
  Backends& backends_;
  InputGate& input_;
  OutputGate& output_;
  std::function<void(MachineExit)> ended_;

  Buses buses_;
  std::vector<std::unique_ptr<kvm::PulseLine>> lines_;
  std::vector<Fd> doorbells_;
  Serial serial_;
  Rtc rtc_;
  PowerManagement power_;
  I8042 i8042_;
  std::vector<std::unique_ptr<VirtioMmio>> virtio_;  // by slot
  std::vector<VirtioNet*> nics_;                     // functions of some of them
  std::vector<VirtioMmio*> nic_transports_;
  VirtioConsole* console_ = nullptr;
  bool listening_ = false;
  bool restored_ = false;

  std::vector<std::unique_ptr<EventLoop>>
      loops_;  // the first serves all but disks; last member: they use the rest
};

}  // namespace pollux::vmm
