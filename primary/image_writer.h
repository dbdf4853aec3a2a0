// Writes committed disk operations to the primary's own images, epoch by epoch, on a thread of its own.
#pragma once

#include <condition_variable>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>

#include "primary/held_epoch.h"
#include "vmm/machine/backends.h"

namespace pollux::primary {

// One disk operation on its image; false when that refuses.
[[nodiscard]] bool perform(vmm::Image& image, DiskOperationKind kind, std::uint64_t offset, std::uint64_t length,
                           ByteView from);

class ImageWriter {
 public:
  // Called on the writer's thread.
  struct Callbacks {
    // The images hold this epoch, durably if it flushed. In the order of write().
    std::function<void(const HeldEpoch& epoch)> written;
    // An image refused: nothing more is written, for no later write may overtake the lost one.
    std::function<void(const std::string& image)> failed;
  };

  ImageWriter(vmm::Backends& backends, Callbacks callbacks);
  // Writes what is queued, unless abandoned.
  ~ImageWriter();

  // Queued epochs are bounded by the gate, which counts their bytes until they are written.
  void write(std::shared_ptr<const HeldEpoch> epoch);
  // Forgets what is queued. No callback is under way or comes any more when it returns. Not from a callback.
  void abandon();

 private:
  void run();
  // Nothing, or the path of the image that refused.
  [[nodiscard]] std::optional<std::string> write_epoch(const HeldEpoch& epoch);

  vmm::Backends& backends_;
  const Callbacks callbacks_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<std::shared_ptr<const HeldEpoch>> queue_;
  bool busy_ = false;
  bool abandoned_ = false;
  bool stop_ = false;
  std::thread thread_;
};

}  // namespace pollux::primary
