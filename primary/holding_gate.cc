#include "primary/holding_gate.h"

#include <utility>

#include "base/error.h"

namespace pollux::primary {

using protocol::EpochId;

HoldingGate::HoldingGate(vmm::Backends& backends, std::uint64_t held_limit, Callbacks callbacks)
    : backends_(backends),
      held_limit_(held_limit),
      callbacks_(std::move(callbacks)),
      running_(std::make_shared<HeldEpoch>()),
      overlays_(backends.disk_count()),
      writer_(backends, {.written = [this](const HeldEpoch& epoch) { written(epoch); },
                         .failed = [this](const std::string& image) { image_failed(image); }}) {}

HoldingGate::~HoldingGate() {
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
  }
  changed_.notify_all();
}

bool HoldingGate::transmit(vmm::NicIndex nic, ByteView frame) {
  const std::lock_guard lock(mutex_);
  if (mode_ == Mode::kPass) {
    backends_.nic(nic).send(frame);
    return true;
  }
  const std::uint64_t bytes = frame.size() + kItemOverhead;
  if (held_bytes_ > 0 && held_bytes_ + bytes > held_limit_) {
    refused_frame_ = true;
    return false;
  }
  running_->frames.push_back({nic, Bytes(frame.begin(), frame.end())});
  running_->emitted_bytes += bytes;
  held_bytes_ += bytes;
  return true;
}

void HoldingGate::on_room(std::function<void()> callback) { on_room_ = std::move(callback); }

void HoldingGate::console(vmm::ConsoleIndex console, ByteView bytes) {
  const std::lock_guard lock(mutex_);
  if (mode_ == Mode::kPass) {
    backends_.console(console).write(bytes);
    return;
  }
  Bytes& held = running_->console.at(console.value);
  held.insert(held.end(), bytes.begin(), bytes.end());
  running_->emitted_bytes += bytes.size();
  held_bytes_ += bytes.size();
}

bool HoldingGate::read(vmm::DiskIndex disk, std::uint64_t offset, MutableByteView into) {
  // The overlay is looked at before the image: an extent leaves the overlay only when the image holds it, so
  // whatever is missing from this snapshot is found on the image.
  std::vector<WriteOverlay::Extent> extents;
  {
    const std::lock_guard lock(mutex_);
    extents = overlays_.at(disk.value).overlapping(offset, into.size());
  }
  const bool covered = extents.size() == 1 && extents.front().length == into.size();
  if (!covered && !backends_.disk(disk).read(offset, into)) return false;
  WriteOverlay::patch(offset, into, extents);
  return true;
}

bool HoldingGate::write(vmm::DiskIndex disk, std::uint64_t offset, ByteView from) {
  return submit(DiskOperationKind::kWrite, disk, offset, from.size(), from);
}

bool HoldingGate::discard(vmm::DiskIndex disk, std::uint64_t offset, std::uint64_t length) {
  return submit(DiskOperationKind::kDiscard, disk, offset, length, {});
}

bool HoldingGate::flush(vmm::DiskIndex disk) { return submit(DiskOperationKind::kFlush, disk, 0, 0, {}); }

bool HoldingGate::submit(DiskOperationKind kind, vmm::DiskIndex disk, std::uint64_t offset,
                         std::uint64_t length, ByteView from) {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [&] {
    // Passing operations go behind everything that was released to the images before.
    if (stop_ || mode_ == Mode::kPass) return stop_ || images_idle();
    return held_bytes_ == 0 || held_bytes_ + from.size() + kItemOverhead <= held_limit_;
  });
  if (stop_) return false;
  if (mode_ == Mode::kHold) {
    auto data = from.empty() ? nullptr : std::make_shared<const Bytes>(from.begin(), from.end());
    hold_operation(kind, disk, offset, length, std::move(data));
    return true;
  }
  if (tracker_ != nullptr) tracker_->mark(disk, offset, length);
  ++passing_;
  lock.unlock();
  const bool done = perform(backends_.disk(disk), kind, offset, length, from);
  lock.lock();
  --passing_;
  // A block read for the sync while this write was under way may be torn: it is sent again.
  if (tracker_ != nullptr) tracker_->mark(disk, offset, length);
  changed_.notify_all();
  return done;
}

// With mutex_ held.
void HoldingGate::hold_operation(DiskOperationKind kind, vmm::DiskIndex disk, std::uint64_t offset,
                                 std::uint64_t length, std::shared_ptr<const Bytes> data) {
  const WriteOverlay::Sequence sequence = next_sequence_++;
  if (kind == DiskOperationKind::kFlush) {
    running_->flushed = true;
  } else {
    overlays_.at(disk.value).insert(offset, length, sequence, data);
  }
  const std::uint64_t bytes = (data ? data->size() : 0) + kItemOverhead;
  running_->disk_operations.push_back({kind, disk, offset, length, sequence, std::move(data)});
  running_->disk_bytes += bytes;
  held_bytes_ += bytes;
}

void HoldingGate::track_writes(BlockTracker* tracker) {
  const std::lock_guard lock(mutex_);
  tracker_ = tracker;
}

void HoldingGate::hold() {
  std::unique_lock lock(mutex_);
  POLLUX_ASSERT(mode_ == Mode::kPass);
  changed_.wait(lock, [&] { return passing_ == 0 && images_idle(); });
  mode_ = Mode::kHold;
}

std::shared_ptr<const HeldEpoch> HoldingGate::seal(EpochId epoch) {
  const std::lock_guard lock(mutex_);
  POLLUX_ASSERT(mode_ == Mode::kHold);
  POLLUX_ASSERT(sealed_.empty() || sealed_.back()->epoch < epoch);
  running_->epoch = epoch;
  sealed_.push_back(running_);
  running_ = std::make_shared<HeldEpoch>();
  return sealed_.back();
}

void HoldingGate::release(EpochId epoch) {
  const std::lock_guard emitting(emit_mutex_);
  std::vector<std::shared_ptr<const HeldEpoch>> released;
  {
    const std::lock_guard lock(mutex_);
    if (image_failed_) return;
    while (!sealed_.empty() && sealed_.front()->epoch <= epoch) {
      released.push_back(std::move(sealed_.front()));
      sealed_.pop_front();
    }
  }
  for (const auto& held : released) emit(*held);
  std::vector<std::shared_ptr<const HeldEpoch>> writes;
  for (const auto& held : released) writes.push_back(writes_of(*held));
  bool room = false;
  {
    const std::lock_guard lock(mutex_);
    for (std::size_t i = 0; i < released.size(); ++i) {
      count_as_emitted(*released[i]);
      queue_for_images(std::move(writes[i]));
    }
    room = std::exchange(refused_frame_, false);
  }
  changed_.notify_all();
  if (room && on_room_) on_room_();
}

void HoldingGate::emit(const HeldEpoch& epoch) {
  for (const HeldFrame& held : epoch.frames) backends_.nic(held.nic).send(held.frame);
  for (std::uint32_t i = 0; i < vmm::kConsoleCount; ++i) {
    if (!epoch.console[i].empty()) backends_.console({i}).write(epoch.console[i]);
  }
}

// Without what has left already: that is not counted any more, so it must not wait for a slow disk.
std::shared_ptr<const HeldEpoch> HoldingGate::writes_of(const HeldEpoch& epoch) {
  auto writes = std::make_shared<HeldEpoch>();
  writes->epoch = epoch.epoch;
  writes->disk_operations = epoch.disk_operations;
  writes->flushed = epoch.flushed;
  writes->disk_bytes = epoch.disk_bytes;
  return writes;
}

// With mutex_ held.
void HoldingGate::count_as_emitted(const HeldEpoch& epoch) {
  POLLUX_ASSERT(held_bytes_ >= epoch.emitted_bytes);
  held_bytes_ -= epoch.emitted_bytes;
}

// With mutex_ held.
void HoldingGate::queue_for_images(std::shared_ptr<const HeldEpoch> epoch) {
  if (epoch->disk_operations.empty()) return;
  ++unwritten_;
  writer_.write(std::move(epoch));
}

void HoldingGate::pass() {
  const std::lock_guard emitting(emit_mutex_);
  std::unique_lock lock(mutex_);
  // The guest goes on emitting meanwhile: until nothing is left that was held.
  while (mode_ == Mode::kHold) {
    std::deque<std::shared_ptr<const HeldEpoch>> held = std::exchange(sealed_, {});
    held.push_back(std::exchange(running_, std::make_shared<HeldEpoch>()));
    for (const auto& epoch : held) {
      count_as_emitted(*epoch);
      queue_for_images(epoch);
    }
    changed_.notify_all();
    wait_for_images(lock);
    if (image_failed_) return;
    // Only now: no other host has the flushes that these outputs may speak of.
    for (const auto& epoch : held) emit(*epoch);
    if (stop_ || (running_->emitted_bytes == 0 && running_->disk_operations.empty())) mode_ = Mode::kPass;
  }
  const bool room = std::exchange(refused_frame_, false);
  changed_.notify_all();
  lock.unlock();
  if (room && on_room_) on_room_();
}

void HoldingGate::abandon() {
  {
    const std::lock_guard lock(mutex_);
    image_failed_ = stop_ = true;
  }
  changed_.notify_all();
  writer_.abandon();
}

void HoldingGate::wait_for_images(std::unique_lock<std::mutex>& lock) {
  changed_.wait(lock, [&] { return images_idle() || stop_; });
}

void HoldingGate::settle() {
  std::unique_lock lock(mutex_);
  POLLUX_ASSERT(sealed_.empty() || stop_ || image_failed_);
  wait_for_images(lock);
}

void HoldingGate::drain() {
  {
    std::unique_lock lock(mutex_);
    wait_for_images(lock);
  }
  for (std::uint32_t i = 0; i < backends_.disk_count(); ++i) {
    if (!backends_.disk({i}).read_only()) (void)backends_.disk({i}).sync();
  }
}

std::uint64_t HoldingGate::held_bytes() const {
  const std::lock_guard lock(mutex_);
  return held_bytes_;
}

void HoldingGate::written(const HeldEpoch& epoch) {
  {
    const std::lock_guard lock(mutex_);
    for (const HeldDiskOperation& operation : epoch.disk_operations) {
      if (tracker_ != nullptr) tracker_->mark(operation.disk, operation.offset, operation.length);
      overlays_.at(operation.disk.value).erase(operation.offset, operation.length, operation.sequence);
    }
    held_bytes_ -= epoch.disk_bytes;
    --unwritten_;
  }
  changed_.notify_all();
  if (epoch.flushed && epoch.epoch.value != 0) callbacks_.durable(epoch.epoch);
}

void HoldingGate::image_failed(const std::string& image) {
  {
    const std::lock_guard lock(mutex_);
    image_failed_ = true;
  }
  // Before the guest's waiting operations fail: the links must be down by the time it could say anything of that.
  callbacks_.image_failed(image);
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
  }
  changed_.notify_all();
}

}  // namespace pollux::primary
