#include "vmm/machine/device_set.h"

#include <unistd.h>

#include <string>
#include <utility>

#include "vmm/devices/virtio/virtio_block.h"
#include "vmm/devices/virtio/virtio_entropy.h"
#include "vmm/machine/layout.h"
#include "vmm/machine/listen.h"

namespace pollux::vmm {
DeviceSet::DeviceSet(const MachineConfig& config, GuestMemory& memory, kvm::Vm& vm, Backends& backends,
                     InputGate& input, OutputGate& output, std::function<void(MachineExit)> ended)
    : memory_(memory),
      vm_(vm),
      backends_(backends),
      input_(input),
      output_(output),
      ended_(std::move(ended)),
      serial_(output, line(layout::kSerialGsi)),
      rtc_(input),
      power_(
          [this] {
            ended_({ExitReason::kPowerOff, ""});
          },
          [this] {
            ended_({ExitReason::kReset, ""});
          }),
      i8042_([this] {
        ended_({ExitReason::kReset, ""});
      }) {
  buses_.ports.add(layout::kSerialPort, layout::kSerialPorts, serial_);
  buses_.ports.add(layout::kRtcPort, layout::kRtcPorts, rtc_);
  buses_.ports.add(layout::kPowerPort, layout::kPowerPorts, power_);
  buses_.ports.add(layout::kKeyboardPort, layout::kKeyboardPorts, i8042_);

  loops_.push_back(std::make_unique<EventLoop>("io"));
  add_disks(config);
  add_nics(config);
  auto console = std::make_unique<VirtioConsole>(output_);
  console_ = console.get();
  add_virtio("console", std::move(console), *loops_.front());
  add_virtio("rng", std::make_unique<VirtioEntropy>(input_), *loops_.front());
  freeze();
  input_.attach(*this);
  output_.on_room([this] {
    for (VirtioMmio* nic : nic_transports_) nic->notify(VirtioNet::kTransmitQueue);
  });
}

// Threads that wait for a frozen device are let go before the loops are joined.
DeviceSet::~DeviceSet() {
  output_.on_room([] {});
  for (const auto& device : virtio_) device->retire();
  serial_.thaw();
  for (const auto& loop : loops_) loop->stop();
}

void DeviceSet::add_disks(const MachineConfig& config) {
  for (std::uint32_t i = 0; i < config.disks.size(); ++i) {
    const std::string name = "disk " + std::to_string(i);
    loops_.push_back(std::make_unique<EventLoop>(name));
    add_virtio(name, std::make_unique<VirtioBlock>(DiskIndex{i}, config.disks[i], output_), *loops_.back());
  }
}

void DeviceSet::add_nics(const MachineConfig& config) {
  for (std::uint32_t i = 0; i < config.nics.size(); ++i) {
    auto nic = std::make_unique<VirtioNet>(NicIndex{i}, config.nics[i], output_);
    nics_.push_back(nic.get());
    add_virtio("NIC " + std::to_string(i), std::move(nic), *loops_.front());
    nic_transports_.push_back(virtio_.back().get());
  }
}

void DeviceSet::add_virtio(const std::string& name, std::unique_ptr<VirtioFunction> function,
                           EventLoop& loop) {
  const auto slot = static_cast<std::uint32_t>(virtio_.size());
  virtio_.push_back(std::make_unique<VirtioMmio>(name, std::move(function), memory_,
                                                 line(layout::virtio_gsi(slot)), &loop));
  buses_.memory.add(layout::virtio_window(slot).value, kVirtioMmioWindow, *virtio_.back());
  add_doorbells(*virtio_.back(), slot, loop);
}

// The guest's notification becomes an eventfd, without a trip through the vCPU's thread.
void DeviceSet::add_doorbells(VirtioMmio& device, std::uint32_t slot, EventLoop& loop) {
  for (std::uint32_t queue = 0; queue < device.queue_count(); ++queue) {
    doorbells_.push_back(make_eventfd());
    vm_.add_doorbell(layout::virtio_window(slot) + kVirtioQueueNotify, queue, doorbells_.back());
    loop.watch(doorbells_.back().get(), [&device, queue, fd = doorbells_.back().get()] {
      std::uint64_t count = 0;
      if (::read(fd, &count, sizeof count) == sizeof count) device.notify({queue});
    });
  }
}

InterruptLine& DeviceSet::line(kvm::Gsi gsi) {
  lines_.push_back(std::make_unique<kvm::PulseLine>(vm_, gsi));
  return *lines_.back();
}

std::vector<BusDevice*> DeviceSet::all() {
  std::vector<BusDevice*> devices{&serial_, &rtc_, &power_, &i8042_};
  for (const auto& device : virtio_) devices.push_back(device.get());
  return devices;
}

void DeviceSet::freeze() {
  for (BusDevice* device : all()) device->freeze();
}

void DeviceSet::thaw() {
  for (BusDevice* device : all()) device->thaw();
  if (std::exchange(restored_, false)) {
    serial_.resume_after_restore();
    for (const auto& device : virtio_) device->resume_after_restore();
  }
  if (!std::exchange(listening_, true)) listen(backends_, input_, *loops_.front());
}

void DeviceSet::deliver(Arrival arrival) {
  if (auto* frame = std::get_if<FrameArrival>(&arrival)) {
    if (frame->nic.value < nics_.size()) nics_[frame->nic.value]->deliver(std::move(frame->frame));
    return;
  }
  const auto& input = std::get<ConsoleArrival>(arrival);
  if (input.console == kSerialConsole) {
    serial_.deliver(input.bytes);
  } else {
    console_->deliver(input.bytes);
  }
}

void DeviceSet::save(schema::MachineState::Builder state) const {
  serial_.save(state.initSerial());
  rtc_.save(state.initRtc());
  power_.save(state.initPower());
  auto devices = state.initVirtio(static_cast<unsigned>(virtio_.size()));
  for (unsigned slot = 0; slot < devices.size(); ++slot) virtio_[slot]->save(devices[slot]);
}

void DeviceSet::restore(schema::MachineState::Reader state) {
  const auto devices = state.getVirtio();
  if (devices.size() != virtio_.size()) throw Error("machine state: bad number of virtio devices");
  serial_.restore(state.getSerial());
  rtc_.restore(state.getRtc());
  power_.restore(state.getPower());
  for (unsigned slot = 0; slot < devices.size(); ++slot) virtio_[slot]->restore(devices[slot]);
  restored_ = true;
}

void DeviceSet::announce() {
  for (std::uint32_t i = 0; i < nics_.size(); ++i) {
    for (const Bytes& frame : nics_[i]->announcement()) {
      // No room: the switches learn from the guest's next own frame.
      [[maybe_unused]] const bool sent = output_.transmit({i}, frame);
    }
  }
}

}  // namespace pollux::vmm
