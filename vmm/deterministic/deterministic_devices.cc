#include "vmm/deterministic/deterministic_devices.h"

#include <cstring>
#include <future>

#include "base/error.h"
#include "vmm/devices/virtio/virtio_entropy.h"
#include "vmm/guest/abi.h"
#include "vmm/machine/layout.h"
#include "vmm/state/message.h"

namespace pollux::vmm {

static_assert(guest_abi::kVirtioBase == layout::kVirtioBase.value);
static_assert(guest_abi::kVirtioStride == layout::kVirtioStride);

// --- Output ---

bool DeterministicOutput::transmit(NicIndex nic, ByteView frame) {
  emitted_ = true;
  [[maybe_unused]] const bool room = gate_.transmit(nic, frame);
  return true;
}

void DeterministicOutput::console(ConsoleIndex console, ByteView bytes) {
  emitted_ = true;
  gate_.console(console, bytes);
}

bool DeterministicOutput::read(DiskIndex disk, std::uint64_t offset, MutableByteView into) {
  return gate_.read(disk, offset, into);
}

bool DeterministicOutput::write(DiskIndex disk, std::uint64_t offset, ByteView from) {
  emitted_ = true;
  return gate_.write(disk, offset, from);
}

bool DeterministicOutput::discard(DiskIndex disk, std::uint64_t offset, std::uint64_t length) {
  emitted_ = true;
  return gate_.discard(disk, offset, length);
}

bool DeterministicOutput::flush(DiskIndex disk) {
  emitted_ = true;
  return gate_.flush(disk);
}

// --- Disk requests ---

void DiskExecutor::use_thread(bool use) {
  if (threaded_ == use) return;
  drain();
  if (use && loop_ == nullptr) loop_ = std::make_unique<EventLoop>(name_);
  threaded_ = use;
}

void DiskExecutor::submit(std::function<void()> perform) {
  if (!threaded_) return perform();
  loop_->post([this, perform = std::move(perform)] {
    perform();
    performed_();
  });
}

void DiskExecutor::drain() {
  if (!threaded_) return;
  std::promise<void> reached;
  loop_->post([&] { reached.set_value(); });
  reached.get_future().wait();
}

// --- One device ---

// Its window on the bus: doorbells only ring, everything else is the transport's.
class DeterministicDevices::Slot final : public BusDevice, private InterruptLine {
 public:
  Slot(std::string name, std::unique_ptr<VirtioFunction> function, GuestMemory& memory, std::uint64_t event,
       std::uint64_t& events)
      : event_(event), events_(events), device_(std::move(name), std::move(function), memory, *this, nullptr) {}

  void read(std::uint64_t offset, MutableByteView into) override { device_.read(offset, into); }
  void write(std::uint64_t offset, ByteView from) override {
    touched_ = true;
    if (offset != kVirtioQueueNotify) return device_.write(offset, from);
    std::uint32_t queue = 0;
    if (from.size() != sizeof queue) return;
    std::memcpy(&queue, from.data(), sizeof queue);
    if (queue < device_.queue_count()) doorbells_ |= 1u << queue;
  }
  void freeze() override { device_.freeze(); }
  void thaw() override { device_.thaw(); }

  void serve() {
    const std::uint32_t rang = std::exchange(doorbells_, 0);
    for (std::uint32_t queue = 0; rang >> queue != 0; ++queue) {
      if (rang >> queue & 1) device_.notify({queue});
    }
  }
  // Something else than the driver changed its state.
  void touch() { touched_ = true; }

  [[nodiscard]] const Digest& digest() {
    if (std::exchange(touched_, false)) {
      capnp::MallocMessageBuilder message;
      device_.freeze();
      device_.save(message.initRoot<schema::VirtioDeviceState>());
      device_.thaw();
      digest_ = digest_of(to_bytes(message));
    }
    return digest_;
  }

  void save(schema::DeterministicDeviceState::Builder state) {
    device_.freeze();
    device_.save(state.initDevice());
    device_.thaw();
    state.setDoorbells(doorbells_);
  }
  void restore(schema::DeterministicDeviceState::Reader state) {
    device_.restore(state.getDevice());
    doorbells_ = state.getDoorbells();
    if (doorbells_ >> device_.queue_count() != 0) throw Error("restore virtio device: doorbell of no queue");
    touched_ = true;
  }

 private:
  void trigger() override { events_ |= event_; }

  std::uint64_t event_;
  std::uint64_t& events_;
  std::uint32_t doorbells_ = 0;
  bool touched_ = true;
  Digest digest_;
  VirtioMmio device_;
};

// --- All of them ---

DeterministicDevices::DeterministicDevices(const MachineConfig& config, GuestMemory& memory,
                                           Environment& environment, OutputGate& output, Inbox& inbox)
    : memory_(memory), inbox_(inbox) {
  for (std::uint32_t i = 0; i < config.disks.size(); ++i) {
    const std::string name = "disk " + std::to_string(i);
    executors_.push_back(std::make_unique<DiskExecutor>(name, [this] { inbox_.wake(); }));
    auto disk = std::make_unique<VirtioBlock>(DiskIndex{i}, config.disks[i], output, executors_.back().get());
    disks_.push_back(disk.get());
    disk_slots_.push_back(&add(name, std::move(disk)));
  }
  for (std::uint32_t i = 0; i < config.nics.size(); ++i) {
    auto nic = std::make_unique<VirtioNet>(NicIndex{i}, config.nics[i], output);
    nics_.push_back(nic.get());
    nic_slots_.push_back(&add("NIC " + std::to_string(i), std::move(nic)));
  }
  auto console = std::make_unique<VirtioConsole>(output);
  console_ = console.get();
  console_slot_ = &add("console", std::move(console));
  add("rng", std::make_unique<VirtioEntropy>(environment));
}

// Requests under way refer to the disks: their threads end first.
DeterministicDevices::~DeterministicDevices() { executors_.clear(); }

DeterministicDevices::Slot& DeterministicDevices::add(std::string name, std::unique_ptr<VirtioFunction> function) {
  const auto slot = static_cast<std::uint32_t>(slots_.size());
  slots_.push_back(std::make_unique<Slot>(std::move(name), std::move(function), memory_,
                                          guest_abi::virtio_event(slot), events_));
  return *slots_.back();
}

void DeterministicDevices::add_to(Bus& bus) {
  for (std::uint32_t slot = 0; slot < slots_.size(); ++slot) {
    bus.add(layout::virtio_window(slot).value, kVirtioMmioWindow, *slots_[slot]);
  }
}

void DeterministicDevices::perform_concurrently(bool concurrently) {
  for (const auto& executor : executors_) executor->use_thread(concurrently);
}

void DeterministicDevices::serve() {
  for (const auto& slot : slots_) slot->serve();
}

std::vector<DiskCompletion> DeterministicDevices::performed() const {
  std::vector<DiskCompletion> all;
  for (std::uint32_t i = 0; i < disks_.size(); ++i) {
    for (const BlockCompletion& completion : disks_[i]->performed()) all.push_back({{i}, completion});
  }
  return all;
}

std::optional<std::string> DeterministicDevices::complete(const DiskCompletion& done) {
  const std::string name = "disk " + std::to_string(done.disk.value);
  if (done.disk.value >= disks_.size()) return name + " answers a request, and there is none";
  disk_slots_[done.disk.value]->touch();
  switch (disks_[done.disk.value]->complete(done.completion)) {
    case VirtioBlock::Completed::kYes: return std::nullopt;
    case VirtioBlock::Completed::kNotOutstanding:
      return name + " answers request " + std::to_string(done.completion.head) + ", which is not outstanding";
    case VirtioBlock::Completed::kFailedHere:
      return name + " failed in request " + std::to_string(done.completion.head) + ", which succeeded before";
  }
  return std::nullopt;
}

bool DeterministicDevices::deliver(const Arrival& arrival) {
  if (const auto* frame = std::get_if<FrameArrival>(&arrival)) {
    if (frame->nic.value >= nics_.size()) return false;
    nic_slots_[frame->nic.value]->touch();
    nics_[frame->nic.value]->deliver(frame->frame);
    return true;
  }
  // The serial port of other machines is the epoch device here, which has no input: both backends' is the console's.
  console_slot_->touch();
  console_->deliver(std::get<ConsoleArrival>(arrival).bytes);
  return true;
}

void DeterministicDevices::settle() {
  for (VirtioBlock* disk : disks_) disk->settle();
}

void DeterministicDevices::make_uncertain() {
  for (VirtioBlock* disk : disks_) disk->make_uncertain();
}

Digest DeterministicDevices::digest() {
  std::vector<Digest> digests;
  for (const auto& slot : slots_) digests.push_back(slot->digest());
  return digest_of(std::as_bytes(std::span(digests)));
}

std::vector<std::pair<NicIndex, Bytes>> DeterministicDevices::announcements() const {
  std::vector<std::pair<NicIndex, Bytes>> frames;
  for (std::uint32_t i = 0; i < nics_.size(); ++i) {
    for (Bytes& frame : nics_[i]->announcement()) frames.emplace_back(NicIndex{i}, std::move(frame));
  }
  return frames;
}

// --- Saved state ---

void DeterministicDevices::save(schema::DeterministicState::Builder state) {
  auto devices = state.initDevices(static_cast<unsigned>(slots_.size()));
  for (unsigned i = 0; i < devices.size(); ++i) slots_[i]->save(devices[i]);
  for (unsigned i = 0; i < disks_.size(); ++i) {
    disks_[i]->save_results(devices[i].initResults(static_cast<unsigned>(disks_[i]->outstanding())));
  }
  for (unsigned i = 0; i < nics_.size(); ++i) {
    const auto& waiting = nics_[i]->waiting();
    auto frames =
        devices[static_cast<unsigned>(disks_.size()) + i].initWaiting(static_cast<unsigned>(waiting.size()));
    for (unsigned j = 0; j < frames.size(); ++j) {
      frames.set(j, {reinterpret_cast<const capnp::byte*>(waiting[j].data()), waiting[j].size()});
    }
  }
}

void DeterministicDevices::restore(schema::DeterministicState::Reader state) {
  const auto devices = state.getDevices();
  if (devices.size() != slots_.size()) throw Error("deterministic machine state: bad number of devices");
  for (unsigned i = 0; i < devices.size(); ++i) slots_[i]->restore(devices[i]);
  for (unsigned i = 0; i < disks_.size(); ++i) disks_[i]->restore_results(devices[i].getResults());
  for (unsigned i = 0; i < nics_.size(); ++i) {
    const auto waiting = devices[static_cast<unsigned>(disks_.size()) + i].getWaiting();
    std::deque<Bytes> frames;
    for (const auto frame : waiting) {
      if (frame.size() > kMaxFrame) throw Error("restore NIC: frame too long");
      const auto* bytes = reinterpret_cast<const std::byte*>(frame.begin());
      frames.emplace_back(bytes, bytes + frame.size());
    }
    nics_[i]->restore_waiting(std::move(frames));
  }
}

void DeterministicDevices::resume_after_restore() {
  for (VirtioBlock* disk : disks_) disk->reissue_restored();
}

}  // namespace pollux::vmm
