// Runs the primary's protocol state machine: one thread that feeds it messages, events and time, and carries out
// its effects.
#pragma once

#include <chrono>
#include <condition_variable>
#include <deque>
#include <functional>
#include <mutex>
#include <set>
#include <thread>
#include <vector>

#include "primary/engine_mailbox.h"
#include "primary/shipper.h"
#include "primary/statistics.h"
#include "protocol/primary_replica.h"

namespace pollux::primary {

class ReplicaDriver {
 public:
  static constexpr std::size_t kMaxQueuedEvents = 1024;

  // `shippers` by BackupId; null: that backup never connected. `on_commit` is called on the driver's thread.
  ReplicaDriver(protocol::PrimaryConfig config, std::vector<Shipper*> shippers, EngineMailbox& mailbox,
                Statistics& statistics, std::function<void(protocol::EpochId, bool durable_first)> on_commit);
  ~ReplicaDriver();

  // Begins: backups without a link are reported down. Not before everything on_commit needs exists.
  void start();
  // Thread safe.
  void post(protocol::primary::Event event);
  // Carries out everything posted so far, then ends the thread.
  void stop();

 private:
  void run();
  void step_posted_events();
  void receive_from(protocol::BackupId backup);
  void handle(std::vector<protocol::primary::Effect> effects);
  void carry_out(const protocol::primary::Send& effect);
  void carry_out(const protocol::primary::StartFullSync& effect);
  void carry_out(const protocol::primary::Protected& effect);
  void carry_out(const protocol::primary::Committed& effect);
  void carry_out(const protocol::primary::DropBackup& effect);
  void carry_out(const protocol::primary::Unprotected& effect);

  const std::chrono::nanoseconds silence_timeout_;
  protocol::PrimaryReplica replica_;
  std::vector<Shipper*> shippers_;
  EngineMailbox& mailbox_;
  Statistics& statistics_;
  std::function<void(protocol::EpochId, bool)> on_commit_;
  std::vector<bool> down_reported_;
  bool unprotected_ = false;
  std::set<protocol::BackupId> protecting_;

  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<protocol::primary::Event> events_;
  bool activity_ = false;  // some link has something to receive
  bool stopping_ = false;
  std::thread thread_;
};

}  // namespace pollux::primary
