#include "primary/image_writer.h"

#include "base/error.h"
#include "base/thread_name.h"

namespace pollux::primary {

bool perform(vmm::Image& image, DiskOperationKind kind, std::uint64_t offset, std::uint64_t length, ByteView from) {
  switch (kind) {
    case DiskOperationKind::kWrite: return image.write(offset, from);
    case DiskOperationKind::kDiscard: return image.discard(offset, length);
    case DiskOperationKind::kFlush: return image.sync();
  }
  POLLUX_ASSERT(false);
}

ImageWriter::ImageWriter(vmm::Backends& backends, Callbacks callbacks)
    : backends_(backends), callbacks_(std::move(callbacks)), thread_([this] { run(); }) {}

ImageWriter::~ImageWriter() {
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
  }
  changed_.notify_all();
  thread_.join();
}

void ImageWriter::write(std::shared_ptr<const HeldEpoch> epoch) {
  {
    const std::lock_guard lock(mutex_);
    if (abandoned_) return;
    queue_.push_back(std::move(epoch));
  }
  changed_.notify_all();
}

void ImageWriter::abandon() {
  std::unique_lock lock(mutex_);
  abandoned_ = true;
  queue_.clear();
  changed_.wait(lock, [&] { return !busy_; });
}

void ImageWriter::run() {
  name_this_thread("image writer");
  for (;;) {
    std::shared_ptr<const HeldEpoch> epoch;
    {
      std::unique_lock lock(mutex_);
      changed_.wait(lock, [&] { return stop_ || !queue_.empty(); });
      if (queue_.empty()) return;
      epoch = std::move(queue_.front());
      queue_.pop_front();
      busy_ = true;
    }
    const auto refused = write_epoch(*epoch);
    refused ? callbacks_.failed(*refused) : callbacks_.written(*epoch);
    {
      const std::lock_guard lock(mutex_);
      busy_ = false;
    }
    changed_.notify_all();
    if (refused) return;
  }
}

std::optional<std::string> ImageWriter::write_epoch(const HeldEpoch& epoch) {
  std::vector<bool> flushed(backends_.disk_count());
  for (const HeldDiskOperation& operation : epoch.disk_operations) {
    if (operation.kind == DiskOperationKind::kFlush) {
      flushed.at(operation.disk.value) = true;
      continue;
    }
    vmm::Image& image = backends_.disk(operation.disk);
    const ByteView data = operation.data ? ByteView(*operation.data) : ByteView{};
    if (!perform(image, operation.kind, operation.offset, operation.length, data)) return image.path();
  }
  // One fdatasync a disk, at the end: no earlier flush of the epoch promised anything visible before it.
  for (std::uint32_t i = 0; i < backends_.disk_count(); ++i) {
    if (flushed[i] && !backends_.disk({i}).sync()) return backends_.disk({i}).path();
  }
  return std::nullopt;
}

}  // namespace pollux::primary
