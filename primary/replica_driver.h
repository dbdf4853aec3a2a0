// Runs the primary's protocol state machine: one thread that feeds it messages, events and time, and carries out
// its effects.
#pragma once

#include <chrono>
#include <condition_variable>
#include <deque>
#include <functional>
#include <mutex>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "primary/engine_mailbox.h"
#include "primary/shipper.h"
#include "primary/statistics.h"
#include "protocol/claim.h"
#include "protocol/primary_replica.h"

namespace pollux::primary {

class ReplicaDriver {
 public:
  static constexpr std::size_t kMaxQueuedEvents = 1024;

  // Both are called on the driver's thread.
  struct Callbacks {
    std::function<void(protocol::EpochId, bool durable_first)> committed;
    // Another replica leads the machine: nothing may leave this host any more.
    std::function<void(const std::string& reason)> fenced;
  };

  // `shippers` by BackupId; null: that backup never connected.
  ReplicaDriver(protocol::PrimaryConfig config, std::vector<Shipper*> shippers, EngineMailbox& mailbox,
                Statistics& statistics, Callbacks callbacks, protocol::Claim claim);
  ~ReplicaDriver();

  // Begins: backups without a link are reported down. Not before everything on_commit needs exists.
  void start();
  // Thread safe.
  void post(protocol::primary::Event event);
  // Returns when the event was stepped and its effects are carried out, or nothing will be stepped any more. Not from
  // the driver's thread.
  void post_and_wait(protocol::primary::Event event);
  // Carries out everything posted so far, then ends the thread.
  void stop();
  // This host failed: steps nothing more, so that it claims no term which a backup should have. Thread safe.
  void halt();

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
  void carry_out(const protocol::primary::ClaimTerm& effect);
  void carry_out(const protocol::primary::Fenced& effect);

  const std::chrono::nanoseconds silence_timeout_;
  const protocol::VmId vm_;
  protocol::PrimaryReplica replica_;
  std::vector<Shipper*> shippers_;
  EngineMailbox& mailbox_;
  Statistics& statistics_;
  const Callbacks callbacks_;
  const protocol::Claim claim_;
  std::vector<bool> down_reported_;
  bool unprotected_ = false;
  std::set<protocol::BackupId> protecting_;

  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<protocol::primary::Event> events_;
  std::uint64_t posted_ = 0;  // events, ever
  std::uint64_t stepped_ = 0;
  bool activity_ = false;  // some link has something to receive
  bool stopping_ = false;
  bool halted_ = false;
  std::thread thread_;
  std::thread claimant_;  // waits for the arbiter, while heartbeats go on
};

}  // namespace pollux::primary
