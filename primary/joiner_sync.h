// Brings a backup that joins to an image of a machine that is protected already, beside its epochs: nobody waits for it
// until the end.
//
// A thread of its own compares the disks and sends memory as FullSync does; what changed it is told with each epoch that
// the engine closes. When little is left, the engine lets the machine stand still at the end of an epoch, until that is
// committed by the other backups and on the primary's own image; then the rest is sent, with the state at that epoch's end,
// and the joiner is a backup like the others.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "primary/block_tracker.h"
#include "primary/engine_mailbox.h"
#include "primary/holding_gate.h"
#include "primary/statistics.h"
#include "primary/sync_sender.h"
#include "primary/sync_target.h"
#include "vmm/memory/guest_memory.h"

namespace pollux::primary {

// All public functions are the engine's, on its thread.
class JoinerSync {
 public:
  // `pool`: not the epochs': they never wait for this. Dirty tracking is on.
  JoinerSync(const vmm::GuestMemory& memory, vmm::Backends& backends, HoldingGate& gate, PagePool& pool,
             EngineMailbox& mailbox, Statistics& statistics, SyncTarget joiner);
  // Unless it was finished: the joiner is given up, at once.
  ~JoinerSync();
  JoinerSync(const JoinerSync&) = delete;
  JoinerSync& operator=(const JoinerSync&) = delete;

  [[nodiscard]] const SyncTarget& joiner() const { return joiner_; }
  // These pages changed in the epoch that was just closed.
  void changed(const std::vector<vmm::Gfn>& pages);
  // What is left is little enough to let the guest wait for it.
  [[nodiscard]] bool is_nearly_done() const { return stage_ == Stage::kNearlyDone; }
  // The joiner is gone, or an image cannot be read.
  [[nodiscard]] bool has_failed() const { return stage_ == Stage::kFailed || mailbox_.is_dropped(joiner_.backup); }
  // Nearly done; the machine stands still at the end of an epoch whose changes it was told, and which is committed and on the
  // images. False: an image cannot be read, and the joiner was given up.
  bool send_rest();
  // Then, the machine running or not: that epoch, and the state at its end. `before_end`: see SyncSender::send_end().
  void send_end(protocol::EpochId epoch, const std::shared_ptr<const Bytes>& state,
                const std::function<void(protocol::BackupId)>& before_end);

 private:
  enum class Stage { kSending, kNearlyDone, kFailed, kFinished };

  void run();
  bool send_until_little_is_left();
  [[nodiscard]] std::vector<vmm::Gfn> take_changed();

  HoldingGate& gate_;
  PagePool& pool_;
  EngineMailbox& mailbox_;
  const SyncTarget joiner_;
  const std::size_t memory_pages_;
  std::atomic<Stage> stage_ = Stage::kSending;
  std::mutex mutex_;
  std::vector<vmm::Gfn> changed_;  // guarded by mutex_; twice the machine's pages at most
  BlockTracker written_blocks_;
  SyncSender sender_;  // the thread's, until it has ended
  std::thread thread_;
};

}  // namespace pollux::primary
