// Brings backups from nothing to an image of the running machine.
//
// Disks are compared by block digests and only differing blocks are sent; memory is pre-copied in rounds while
// the guest runs, zero pages as runs without data. A round ends when the backups hold it durably. What was written
// meanwhile is sent again, until little is left; that goes during one last pause, together with the machine's state: the end of the last closed epoch (0 at first). From
// that pause on the gate holds outputs.
#pragma once

#include <functional>
#include <memory>
#include <vector>

#include "primary/block_tracker.h"
#include "primary/engine_mailbox.h"
#include "primary/holding_gate.h"
#include "primary/page_batch.h"
#include "primary/statistics.h"
#include "primary/sync_target.h"
#include "vmm/machine/machine.h"

namespace pollux::primary {

class FullSync {
 public:
  // Another round is begun only while more than this many pages wait and rounds are left; what remains is copied
  // in the last pause.
  static constexpr std::size_t kFinalPages = 1024;
  static constexpr std::size_t kFinalBlocks = 64;
  static constexpr unsigned kMaxRounds = 10;

  // What the machine does when it is protected.
  enum class Afterwards { kRun, kStandStill };

  // `end` is the last closed epoch. `before_end` is called for each target, before its SyncEnd is queued: when it
  // returns the state machine must have been told, since with SyncEnd the backup can take over.
  FullSync(vmm::Machine& machine, vmm::Backends& backends, HoldingGate& gate, PagePool& pool,
           EngineMailbox& mailbox, Statistics& statistics, std::vector<SyncTarget> targets,
           protocol::EpochId end, Afterwards afterwards, std::function<void(protocol::BackupId)> before_end);
  ~FullSync();  // also when run() threw: the gate tracks writes no more
  FullSync(const FullSync&) = delete;
  FullSync& operator=(const FullSync&) = delete;

  // The machine runs before and after, or stands still if it did before (or, protected, is to do so afterwards). False: given up, because the engine is to stop, every target was dropped, or
  // an image cannot be read (then the targets are told and closed); the gate passes then.
  bool run();

 private:
  struct Target {
    SyncTarget to;
    std::vector<BlockRef> blocks;  // to be sent in the next round
    std::uint64_t disk_extents = 0;
  };

  bool sync();
  bool abandoned() const;
  bool compare_disks();
  bool compare_disk(Target& target, vmm::DiskIndex disk);
  bool send_all_memory();
  enum class Sending { kMayBeAbandoned, kWhole };
  bool send_pages(const std::vector<vmm::Gfn>& gfns, Sending sending = Sending::kMayBeAbandoned);
  void send_batch(std::shared_ptr<const PageBatch> batch);
  bool send_blocks();
  void send_block_run(Target& target, std::span<const BlockRef> run);
  bool wait_until_received();
  void final_pause(std::vector<vmm::Gfn> dirty);
  void give_up();
  void pause();
  void resume();

  vmm::Machine& machine_;
  vmm::Backends& backends_;
  HoldingGate& gate_;
  PagePool& pool_;
  EngineMailbox& mailbox_;
  Statistics& statistics_;
  const protocol::EpochId end_;
  const bool stands_still_;  // an operator holds it
  const Afterwards afterwards_;
  std::function<void(protocol::BackupId)> before_end_;
  std::vector<Target> targets_;
  BlockTracker written_blocks_;
  protocol::SyncMark mark_;  // the last
  std::uint64_t pages_ = 0;
  std::uint64_t zero_pages_ = 0;
};

}  // namespace pollux::primary
