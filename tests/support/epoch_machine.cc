#include "tests/support/epoch_machine.h"

#include <sys/ioctl.h>

#include <cerrno>
#include <cstring>
#include <ctime>

#include "vmm/boot/boot_loader.h"
#include "vmm/boot/long_mode.h"
#include "vmm/devices/virtio/virtio_block.h"
#include "vmm/guest/abi.h"

namespace pollux::testing {

using namespace guest_abi;
using vmm::GuestAddress;
using vmm::kvm::checked_ioctl;

namespace {

constexpr unsigned long kTssAddress = 0xfffb'd000;
constexpr std::uint64_t kClockStep = 1'000;          // a reading
constexpr std::uint64_t kEpochDuration = 1'000'000;  // an epoch

std::uint64_t digest(ByteView bytes, std::uint64_t state = 0xcbf2'9ce4'8422'2325) {
  std::size_t i = 0;
  for (; i + 8 <= bytes.size(); i += 8) {
    std::uint64_t word = 0;
    std::memcpy(&word, bytes.data() + i, 8);
    state = (state ^ word) * 0x9e37'79b9'7f4a'7c15;
    state ^= state >> 32;
  }
  for (; i < bytes.size(); ++i) state = (state ^ static_cast<std::uint64_t>(bytes[i])) * 0x100'0000'01b3;
  return state;
}

}  // namespace

class EpochMachine::Gate final : public vmm::OutputGate {
 public:
  explicit Gate(EpochMachine& machine) : machine_(machine) {}
  bool transmit(vmm::NicIndex nic, ByteView frame) override {
    if (machine_.on_frame) machine_.on_frame(nic.value, frame);
    return true;
  }
  void on_room(std::function<void()>) override {}
  void console(vmm::ConsoleIndex, ByteView) override {}
  bool read(vmm::DiskIndex disk, std::uint64_t offset, MutableByteView into) override {
    std::memcpy(into.data(), machine_.disks_[disk.value].data() + offset, into.size());
    return true;
  }
  bool write(vmm::DiskIndex disk, std::uint64_t offset, ByteView from) override {
    std::memcpy(machine_.disks_[disk.value].data() + offset, from.data(), from.size());
    return true;
  }
  bool discard(vmm::DiskIndex disk, std::uint64_t offset, std::uint64_t length) override {
    std::memset(machine_.disks_[disk.value].data() + offset, 0, length);
    return true;
  }
  bool flush(vmm::DiskIndex) override { return true; }

 private:
  EpochMachine& machine_;
};

class EpochMachine::Line final : public vmm::InterruptLine {
 public:
  Line(std::uint64_t& events, std::uint64_t event) : events_(events), event_(event) {}
  void trigger() override { events_ |= event_; }

 private:
  std::uint64_t& events_;
  std::uint64_t event_;
};

EpochMachine::EpochMachine(EpochMachineConfig config)
    : config_(std::move(config)),
      memory_(config_.memory_bytes),
      vm_(checked_ioctl(system_.fd(), KVM_CREATE_VM, "KVM_CREATE_VM", 0UL)),
      gate_(std::make_unique<Gate>(*this)) {
  checked_ioctl(vm_, KVM_SET_TSS_ADDR, "KVM_SET_TSS_ADDR", kTssAddress);
  std::uint32_t slot = 0;
  for (const auto& region : memory_.regions()) {
    kvm_userspace_memory_region entry{};
    entry.slot = slot++;
    entry.guest_phys_addr = region.start.value;
    entry.memory_size = region.bytes.size();
    entry.userspace_addr = reinterpret_cast<std::uintptr_t>(region.bytes.data());
    checked_ioctl(vm_, KVM_SET_USER_MEMORY_REGION, "KVM_SET_USER_MEMORY_REGION", &entry);
  }
  vcpu_ = Fd(checked_ioctl(vm_, KVM_CREATE_VCPU, "KVM_CREATE_VCPU", 0UL));
  run_area_ = vmm::kvm::Mapping(vcpu_, system_.run_area_bytes(), 0, "the vCPU's run area");
  add_devices();
  boot();
}

EpochMachine::~EpochMachine() = default;

void EpochMachine::add_devices() {
  const auto add = [this](const std::string& name, std::unique_ptr<vmm::VirtioFunction> function) {
    const auto slot = static_cast<std::uint32_t>(devices_.size());
    lines_.push_back(std::make_unique<Line>(events_, virtio_event(slot)));
    devices_.push_back(
        std::make_unique<vmm::VirtioMmio>(name, std::move(function), memory_, *lines_.back(), nullptr));
    bus_.add(virtio_window(slot), vmm::kVirtioMmioWindow, *devices_.back());
  };
  for (std::uint32_t i = 0; i < config_.disks.size(); ++i) {
    disks_.emplace_back(config_.disks[i]);
    vmm::DiskConfig disk;
    disk.size = config_.disks[i];
    add("disk", std::make_unique<vmm::VirtioBlock>(vmm::DiskIndex{i}, disk, *gate_));
  }
  for (std::uint32_t i = 0; i < config_.nics; ++i) {
    vmm::NicConfig config;
    config.mac = {0x52, 0x54, 0, 0, 0, static_cast<std::uint8_t>(i + 1)};
    auto nic = std::make_unique<vmm::VirtioNet>(vmm::NicIndex{i}, config, *gate_);
    nics_.push_back(nic.get());
    add("NIC", std::move(nic));
  }
}

void EpochMachine::boot() {
  vmm::MachineConfig machine;
  machine.memory_bytes = config_.memory_bytes;
  const GuestAddress entry =
      vmm::boot::load_guest(machine, {config_.kernel, "", config_.command_line}, memory_);

  const auto cpuid = system_.supported_cpuid();
  std::vector<std::uint64_t> raw((sizeof(kvm_cpuid2) + cpuid.size() * sizeof(kvm_cpuid_entry2) + 7) / 8);
  auto* list = reinterpret_cast<kvm_cpuid2*>(raw.data());
  list->nent = static_cast<std::uint32_t>(cpuid.size());
  std::copy(cpuid.begin(), cpuid.end(), list->entries);
  checked_ioctl(vcpu_, KVM_SET_CPUID2, "KVM_SET_CPUID2", list);

  kvm_sregs2 system{};
  checked_ioctl(vcpu_, KVM_GET_SREGS2, "KVM_GET_SREGS2", &system);
  system = vmm::boot::long_mode_system_registers(system);
  checked_ioctl(vcpu_, KVM_SET_SREGS2, "KVM_SET_SREGS2", &system);
  const kvm_regs registers = vmm::boot::entry_registers(entry);
  checked_ioctl(vcpu_, KVM_SET_REGS, "KVM_SET_REGS", &registers);
}

EpochMachineResult EpochMachine::run() {
  auto& area = *run_area_.as<kvm_run>();
  while (!ended_ && result_.failure.empty()) {
    // An access is complete, and the registers show it, only when KVM was entered again.
    area.immediate_exit = boundary_ != Boundary::kNone;
    const int ran = ::ioctl(vcpu_.get(), KVM_RUN, 0);
    if (ran < 0 && errno == EINTR) {
      if (boundary_ != Boundary::kNone) end_epoch(boundary_ == Boundary::kWaited);
      continue;
    }
    if (ran < 0) {
      result_.failure = std::string("KVM_RUN: ") + std::strerror(errno);
    } else if (area.exit_reason == KVM_EXIT_MMIO) {
      handle_mmio();
    } else if (area.exit_reason != KVM_EXIT_IRQ_WINDOW_OPEN) {
      kvm_regs registers{};
      checked_ioctl(vcpu_, KVM_GET_REGS, "KVM_GET_REGS", &registers);
      char text[128];
      std::snprintf(text, sizeof text, "exit reason %u, suberror %u, rip %#llx", area.exit_reason,
                    area.internal.suberror, registers.rip);
      result_.failure = text;
    }
    if (result_.epochs >= config_.max_epochs) result_.failure = "too many epochs";
  }
  for (const auto& region : memory_.regions())
    result_.memory_digest = digest(region.bytes, result_.memory_digest);
  return result_;
}

void EpochMachine::handle_mmio() {
  auto& mmio = run_area_.as<kvm_run>()->mmio;
  const MutableByteView bytes(reinterpret_cast<std::byte*>(mmio.data), mmio.len);
  const std::uint64_t address = mmio.phys_addr;
  if (address >= kEpochDevice && address - kEpochDevice < kEpochDeviceBytes) {
    if (mmio.is_write) {
      write_epoch_register(address - kEpochDevice, bytes);
    } else {
      read_epoch_register(address - kEpochDevice, bytes);
    }
    return;
  }
  if (!mmio.is_write) return bus_.read(address, bytes);
  const auto slot = static_cast<std::uint32_t>((address - kVirtioBase) / kVirtioStride);
  const std::uint64_t offset = (address - kVirtioBase) % kVirtioStride;
  std::uint32_t value = 0;
  std::memcpy(&value, bytes.data(), std::min(bytes.size(), sizeof value));
  if (offset == vmm::kVirtioQueueNotify) {
    doorbells_.emplace_back(slot, value);
    return;
  }
  if (offset == 0x80) snooped_[slot].descriptors = value;
  if (offset == 0xa0) snooped_[slot].used = value;
  bus_.write(address, bytes);
}

void EpochMachine::read_epoch_register(std::uint64_t offset, MutableByteView into) {
  std::uint64_t value = ~0ull;
  if (into.size() == sizeof value) {
    switch (offset) {
      case kEpochEnd:
      case kWait:
        boundary_ = offset == kWait ? Boundary::kWaited : Boundary::kCounted;
        value = config_.epoch_length;
        break;
      case kClockNs:
        if (!config_.cpu_clock) made_up_clock_ += kClockStep;
        value = clock();
        break;
      case kEntropy: value = digest(bytes_of(++made_up_clock_)); break;
      default: break;
    }
  }
  std::memcpy(into.data(), &value, into.size());
}

void EpochMachine::write_epoch_register(std::uint64_t offset, ByteView from) {
  std::uint64_t value = 0;
  std::memcpy(&value, from.data(), from.size());
  switch (offset) {
    case kConsole: result_.console.append(reinterpret_cast<const char*>(from.data()), from.size()); break;
    case kTimerNs: timer_ = value; break;
    case kEventWord: event_word_ = value; break;
    case kPowerOff:
      result_.exit_code = static_cast<std::uint32_t>(value);
      ended_ = true;
      break;
    default: break;
  }
}

void EpochMachine::end_epoch(bool waited) {
  boundary_ = Boundary::kNone;
  ++result_.epochs;
  if (!config_.cpu_clock) made_up_clock_ += kEpochDuration;
  if (waited) ++result_.waits;
  if (config_.digests) result_.digests.push_back(register_digest());
  serve_devices();
  if (waited && events_ == 0 && event_word() == 0) wait_for_input();
  if (timer_ != 0 && clock() >= timer_) {
    events_ |= kTimerEvent;
    timer_ = 0;
  }
  inject_events();
}

void EpochMachine::serve_devices() {
  for (const auto& [slot, queue] : std::exchange(doorbells_, {})) {
    if (slot >= devices_.size()) continue;
    devices_[slot]->write(vmm::kVirtioQueueNotify, bytes_of(queue));
    if (config_.uncertain_every != 0 && slot < disks_.size()) make_uncertain(slot);
  }
  for (auto& [nic, frame] : std::exchange(arrivals_, {})) nics_.at(nic)->deliver(std::move(frame));
}

// Requests have one data segment at most: the status is in the last descriptor of the chain.
void EpochMachine::make_uncertain(std::uint32_t slot) {
  SnoopedQueue& queue = snooped_[slot];
  const auto load = [this](std::uint64_t address, auto value) {
    (void)memory_.read({address}, {reinterpret_cast<std::byte*>(&value), sizeof value});
    return value;
  };
  const auto used = load(queue.used + 2, std::uint16_t{});
  for (; queue.seen != used; ++queue.seen) {
    if (++block_requests_ % config_.uncertain_every != 0) continue;
    const auto size = vmm::VirtioBlock::kQueueSize;
    std::uint64_t head = load(queue.used + 4 + (queue.seen % size) * 8u, std::uint32_t{});
    std::uint64_t descriptor = queue.descriptors + head * 16;
    while (load(descriptor + 12, std::uint16_t{}) & 1) {
      descriptor = queue.descriptors + load(descriptor + 14, std::uint16_t{}) * 16u;
    }
    (void)memory_.write({load(descriptor, std::uint64_t{})}, bytes_of(kBlockUncertain));
  }
}

void EpochMachine::wait_for_input() {
  if (on_idle && on_idle()) {
    serve_devices();
    return;
  }
  if (timer_ == 0) {
    result_.failure = "the guest waits for nothing";
  } else {
    made_up_clock_ = std::max(made_up_clock_, timer_);
  }
}

void EpochMachine::inject_events() {
  if (events_ == 0 || event_word_ == 0) return;
  const std::uint64_t word = event_word() | events_;
  events_ = 0;
  (void)memory_.write({event_word_}, bytes_of(word));
  const auto& area = *run_area_.as<kvm_run>();
  if (!area.if_flag) return;
  kvm_interrupt interrupt{};
  interrupt.irq = kEventVector;
  checked_ioctl(vcpu_, KVM_INTERRUPT, "KVM_INTERRUPT", &interrupt);
  ++result_.injections;
}

std::uint64_t EpochMachine::clock() const {
  if (!config_.cpu_clock) return made_up_clock_;
  timespec used{};
  ::clock_gettime(CLOCK_THREAD_CPUTIME_ID, &used);
  return made_up_clock_ + static_cast<std::uint64_t>(used.tv_sec) * 1'000'000'000 +
         static_cast<std::uint64_t>(used.tv_nsec);
}

std::uint64_t EpochMachine::register_digest() const {
  kvm_regs registers{};
  checked_ioctl(vcpu_, KVM_GET_REGS, "KVM_GET_REGS", &registers);
  kvm_fpu fpu{};
  checked_ioctl(vcpu_, KVM_GET_FPU, "KVM_GET_FPU", &fpu);
  registers.r15 = 0;  // the VMM's
  std::uint64_t state = digest(bytes_of(registers));
  state = digest(std::as_bytes(std::span(fpu.xmm)), state);
  return digest(bytes_of(fpu.mxcsr), state);
}

std::uint64_t EpochMachine::event_word() const {
  std::uint64_t word = 0;
  if (event_word_ != 0) {
    (void)memory_.read({event_word_}, {reinterpret_cast<std::byte*>(&word), sizeof word});
  }
  return word;
}

}  // namespace pollux::testing
