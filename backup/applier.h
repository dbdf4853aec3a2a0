// Applies whole records to the image, in order, on a thread of its own, and makes it durable: receiving never waits for
// that.
#pragma once

#include <condition_variable>
#include <deque>
#include <functional>
#include <mutex>
#include <string>
#include <thread>
#include <variant>

#include "backup/lockstep_replica.h"
#include "backup/replica_image.h"
#include "protocol/backup_replica.h"

namespace pollux::backup {

// Owns the image from the end of the full sync to drain(). Thread safe.
class Applier {
 public:
  // `on_done` is called on the applier's thread with EpochApplied, EpochDurable and SyncDurable (`more`: another job follows
  // at once, so that nobody need be woken for this one); `on_failed` with the line of
  // the disk that refused, after which nothing more is applied.
  // `lockstep`: records of inputs are executed there; null: there are none. It outlives this, and is told by
  // `on_diverged` (on the applier's thread, too), after which such records are forgotten until one of pages.
  Applier(ReplicaImage& image, LockstepReplica* lockstep, std::function<void(protocol::backup::Event, bool more)> on_done,
          std::function<void(DivergedEpoch)> on_diverged, std::function<void(std::string)> on_failed);
  // An epoch that is being executed is stopped.
  ~Applier();

  void apply(EpochRecord record);
  void make_durable(protocol::EpochId epoch);
  // During full sync, while the receiving thread writes the image.
  void make_durable(protocol::SyncMark mark);
  // Returns when all of the above is done. False: a disk refused.
  bool drain();

 private:
  struct Durable {
    protocol::EpochId epoch;
  };
  using Job = std::variant<EpochRecord, Durable, protocol::SyncMark>;

  void add(Job job);
  void run();
  void perform(Job job, bool more);
  void apply_now(EpochRecord record, bool more);

  ReplicaImage& image_;
  LockstepReplica* const lockstep_;
  std::function<void(protocol::backup::Event, bool more)> on_done_;
  std::function<void(DivergedEpoch)> on_diverged_;
  std::function<void(std::string)> on_failed_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<Job> jobs_;  // bounded in bytes by the receiver's staging limit
  bool busy_ = false;
  bool failed_ = false;
  bool stopping_ = false;
  std::thread thread_;
};

}  // namespace pollux::backup
