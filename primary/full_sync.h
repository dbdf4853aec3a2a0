// Brings backups from nothing to an image of a machine that nobody protects yet.
//
// Disks are compared by block digests and only differing blocks are sent; memory is pre-copied in rounds while
// the guest runs, zero pages as runs without data. What was written meanwhile is sent again, until little is left; that goes
// during one last pause, together with the machine's state: the end of the last closed epoch (0 at first). From
// that pause on the gate holds outputs. A machine that is protected already: joiner_sync.h.
#pragma once

#include <functional>
#include <memory>
#include <vector>

#include "primary/block_tracker.h"
#include "primary/engine_mailbox.h"
#include "primary/holding_gate.h"
#include "primary/statistics.h"
#include "primary/sync_sender.h"
#include "primary/sync_target.h"
#include "vmm/machine/machine.h"

namespace pollux::primary {

class FullSync {
 public:
  // What the machine does when it is protected.
  enum class Afterwards { kRun, kStandStill };

  // `end` is the last closed epoch. `before_end`: see SyncSender::send_end().
  FullSync(vmm::Machine& machine, vmm::Backends& backends, HoldingGate& gate, PagePool& pool,
           EngineMailbox& mailbox, Statistics& statistics, std::vector<SyncTarget> targets,
           protocol::EpochId end, Afterwards afterwards, std::function<void(protocol::BackupId)> before_end);
  ~FullSync();  // also when run() threw: the gate tracks writes no more
  FullSync(const FullSync&) = delete;
  FullSync& operator=(const FullSync&) = delete;

  // The machine runs before and after, or stands still if it did before (or, protected, is to do so afterwards). False:
  // given up, because the engine is to stop, every target was dropped, or an image cannot be read (then the targets are told
  // and closed); the gate passes then.
  bool run();

 private:
  bool sync();
  void final_pause(const std::vector<vmm::Gfn>& dirty);
  void stop_tracking();
  void pause();
  void resume();

  vmm::Machine& machine_;
  HoldingGate& gate_;
  const protocol::EpochId end_;
  const bool stands_still_;  // an operator holds it
  const Afterwards afterwards_;
  const std::function<void(protocol::BackupId)> before_end_;
  BlockTracker written_blocks_;
  SyncSender sender_;
};

}  // namespace pollux::primary
