// The primary's output gate: output commit.
//
// Nothing the guest emits in epoch n leaves this host before n is committed: frames, console bytes and disk
// writes are held in order and released together. Modes, in the order a primary goes through them:
//
//   pass     not protected: everything passes at once.
//   hold     protected: outputs collect in the running epoch; seal() closes it, release() lets it out.
//   pass     protection lost: what was held has been let out, everything passes again.
//
// During a full sync what is written to the images is noted in a BlockTracker.
//
// A flush is answered at once in `hold`: whatever the guest concludes from it is itself held until the flush's
// epoch is committed, and commit means durable (on the backups by their acknowledgement, here by the rule that
// the image is durable before the next epoch with a flush is released).
//
// Threads: the OutputGate functions come from vCPU and device threads; seal(), hold() and pass() from the epoch
// engine; release() from the replica thread. The ImageWriter's thread writes released disk operations to the images,
// so that frames never wait for a disk.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "primary/block_tracker.h"
#include "primary/held_epoch.h"
#include "primary/image_writer.h"
#include "primary/write_overlay.h"
#include "protocol/types.h"
#include "vmm/gates/output_gate.h"
#include "vmm/machine/backends.h"

namespace pollux::primary {

class HoldingGate final : public vmm::OutputGate {
 public:
  // What a held frame or disk operation costs beside its bytes, roughly: many small ones are bounded too.
  static constexpr std::uint64_t kItemOverhead = 128;

  // Both are called from the image writer's thread.
  struct Callbacks {
    // The images durably hold every flush up to this epoch.
    std::function<void(protocol::EpochId)> durable;
    // An image refused a committed write. The guest was told that it is done, so this host may not go on: it
    // must fail-stop and let a backup take over. Nothing more is written.
    std::function<void(const std::string& image)> image_failed;
  };

  // Disk operations block and frames are refused while more than `held_limit` bytes are held. Console bytes are not
  // refused: whoever runs the guest holds it while is_over_limit().
  HoldingGate(vmm::Backends& backends, std::uint64_t held_limit, Callbacks callbacks);
  ~HoldingGate() override;

  [[nodiscard]] bool transmit(vmm::NicIndex nic, ByteView frame) override;
  void on_room(std::function<void()> callback) override;
  void console(vmm::ConsoleIndex console, ByteView bytes) override;
  [[nodiscard]] bool read(vmm::DiskIndex disk, std::uint64_t offset, MutableByteView into) override;
  [[nodiscard]] bool write(vmm::DiskIndex disk, std::uint64_t offset, ByteView from) override;
  [[nodiscard]] bool discard(vmm::DiskIndex disk, std::uint64_t offset, std::uint64_t length) override;
  [[nodiscard]] bool flush(vmm::DiskIndex disk) override;

  // Note blocks written to the images (null: stop).
  void track_writes(BlockTracker* tracker);
  // Passing -> holding. Returns when no passing operation is under way any more. Machine paused.
  void hold();
  // Closes the running epoch under this id. Machine paused, mode hold.
  std::shared_ptr<const HeldEpoch> seal(protocol::EpochId epoch);
  // Lets out every sealed epoch up to and including `epoch`.
  void release(protocol::EpochId epoch);
  // Holding -> passing: lets out everything held, sealed or not, and returns when the images hold it.
  void pass();
  // Ends everything held without letting it out, and lets every waiter go. No callback comes after it. For a host that
  // failed.
  void abandon();
  // Waits until every disk operation is on its image; all sealed epochs were released before.
  void settle();
  // Waits until every released disk operation is on its image, and durably. For a clean end.
  void drain();

  [[nodiscard]] std::uint64_t held_bytes() const;
  [[nodiscard]] bool is_over_limit() const { return held_bytes() > held_limit_; }

 private:
  enum class Mode { kPass, kHold };

  [[nodiscard]] bool submit(DiskOperationKind kind, vmm::DiskIndex disk, std::uint64_t offset,
                            std::uint64_t length, ByteView from);
  void hold_operation(DiskOperationKind kind, vmm::DiskIndex disk, std::uint64_t offset, std::uint64_t length,
                      std::shared_ptr<const Bytes> data);
  [[nodiscard]] bool images_idle() const { return unwritten_ == 0; }
  void wait_for_images(std::unique_lock<std::mutex>& lock);
  void emit(const HeldEpoch& epoch);
  [[nodiscard]] static std::shared_ptr<const HeldEpoch> writes_of(const HeldEpoch& epoch);
  void count_as_emitted(const HeldEpoch& epoch);
  void queue_for_images(std::shared_ptr<const HeldEpoch> epoch);
  void written(const HeldEpoch& epoch);
  void image_failed(const std::string& image);

  vmm::Backends& backends_;
  const std::uint64_t held_limit_;
  const Callbacks callbacks_;
  std::function<void()> on_room_;

  // Emission order of released frames and console bytes; taken before mutex_.
  std::mutex emit_mutex_;
  mutable std::mutex mutex_;  // all below
  std::condition_variable changed_;
  Mode mode_ = Mode::kPass;
  BlockTracker* tracker_ = nullptr;
  unsigned passing_ = 0;  // disk operations under way on the images while passing
  bool refused_frame_ = false;
  WriteOverlay::Sequence next_sequence_ = 1;
  std::shared_ptr<HeldEpoch> running_;
  std::deque<std::shared_ptr<const HeldEpoch>> sealed_;
  std::size_t unwritten_ = 0;  // epochs given to the writer and not yet on the images
  std::vector<WriteOverlay> overlays_;  // per disk
  std::uint64_t held_bytes_ = 0;
  bool image_failed_ = false;  // nothing leaves any more
  bool stop_ = false;

  ImageWriter writer_;  // last: its thread uses everything above
};

}  // namespace pollux::primary
