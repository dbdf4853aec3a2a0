// What a full sync sends: the disks' differing blocks, memory, and what changed since, in rounds. When a round is over the
// backups hold it durably. It reads pages and images while the guest runs: what changes meanwhile must come in a later
// round, and whoever leads the sync knows it.
#pragma once

#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "base/error.h"
#include "primary/block_tracker.h"
#include "primary/engine_mailbox.h"
#include "primary/page_batch.h"
#include "primary/statistics.h"
#include "primary/sync_target.h"
#include "vmm/machine/backends.h"
#include "vmm/memory/guest_memory.h"

namespace pollux::primary {

// No replica can be made of this image; the guest, which may never read there, is not to suffer for it.
class UnreadableImage : public Error {
 public:
  using Error::Error;
};

// Used by one thread at a time.
class SyncSender {
 public:
  // Another round is begun only while more than these wait and rounds are left; what remains is sent while the guest stands
  // still.
  static constexpr std::size_t kFinalPages = 1024;
  static constexpr std::size_t kFinalBlocks = 64;
  static constexpr unsigned kMaxRounds = 10;

  SyncSender(const vmm::GuestMemory& memory, vmm::Backends& backends, PagePool& pool, EngineMailbox& mailbox,
             Statistics& statistics, std::vector<SyncTarget> targets);

  // The engine is to stop, or every target was dropped.
  [[nodiscard]] bool abandoned() const;
  // These are false when it is abandoned. UnreadableImage is thrown.
  [[nodiscard]] bool send_everything();
  [[nodiscard]] bool send_round(const std::vector<vmm::Gfn>& pages, const std::vector<BlockRef>& blocks);
  // The guest stands still: whole, whatever happens meanwhile. What SyncEnd speaks for must not lack a page.
  void send_rest(const std::vector<vmm::Gfn>& pages, const std::vector<BlockRef>& blocks);
  // With the state at the end of `epoch`. `before_end` is called for each target, before its SyncEnd is queued: when it
  // returns the state machine must have been told, since with SyncEnd the backup can take over.
  void send_end(protocol::EpochId epoch, const std::shared_ptr<const Bytes>& state,
                const std::function<void(protocol::BackupId)>& before_end);
  // The targets are told, and closed.
  void give_up(const std::string& reason);

 private:
  struct Target {
    SyncTarget to;
    std::vector<BlockRef> blocks;  // to be sent next
    std::uint64_t disk_extents = 0;
  };
  enum class Sending { kMayBeAbandoned, kWhole };

  bool compare_disks();
  bool compare_disk(Target& target, vmm::DiskIndex disk);
  bool send_pages(const std::vector<vmm::Gfn>& gfns, Sending sending);
  void send_batch(std::shared_ptr<const PageBatch> batch);
  bool send_blocks();
  void send_block_run(Target& target, std::span<const BlockRef> run);
  bool wait_until_received();

  const vmm::GuestMemory& memory_;
  vmm::Backends& backends_;
  PagePool& pool_;
  EngineMailbox& mailbox_;
  Statistics& statistics_;
  std::vector<Target> targets_;
  protocol::SyncMark mark_;  // the last
  std::uint64_t pages_ = 0;
  std::uint64_t zero_pages_ = 0;
};

}  // namespace pollux::primary
