// Runs the primary's protocol state machine: one thread that feeds it messages, events and time, and carries out
// its effects.
//
// Threads: the driver's own thread owns the state machine and the list of backups, which grows when one joins and
// shrinks when one is dropped. A Shipper is shared: the epoch engine, which gets it with the request for a full sync,
// pushes records through it, the driver everything else. All other threads (engine, image writer, JoinListener, links,
// whoever stops the primary) only post, join() and halt().
#pragma once

#include <chrono>
#include <condition_variable>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "primary/engine_mailbox.h"
#include "primary/shipper.h"
#include "primary/sync_target.h"
#include "primary/statistics.h"
#include "protocol/claim.h"
#include "protocol/primary_replica.h"

namespace pollux::primary {

struct ReplicaStatus {
  struct Backup {
    protocol::BackupId id;
    std::string address;
    protocol::PrimaryReplica::BackupState state{};
    std::optional<protocol::EpochId> acknowledged;
    std::uint64_t unacknowledged = 0;  // epochs closed here
  };
  protocol::Term term;
  protocol::EpochId closed;
  protocol::EpochId committed;
  bool claiming = false;
  std::vector<Backup> backups = {};  // that are not dropped
};

class ReplicaDriver {
 public:
  static constexpr std::size_t kMaxQueuedEvents = 1024;

  // Both are called on the driver's thread.
  struct Callbacks {
    std::function<void(protocol::EpochId, bool durable_first)> committed;
    // Another replica leads the machine: nothing may leave this host any more.
    std::function<void(const std::string& reason)> fenced;
  };

  // `links` by BackupId, those of the configuration; null: that backup never connected.
  ReplicaDriver(protocol::PrimaryConfig config, std::vector<std::unique_ptr<protocol::Link>> links,
                EngineMailbox& mailbox, Statistics& statistics, Callbacks callbacks, protocol::Claim claim,
                const protocol::ReplicaId& self);
  ~ReplicaDriver();

  // Begins: backups without a link are reported down. Not before everything the callbacks need exists.
  void start();
  // Thread safe.
  void post(protocol::primary::Event event);
  // The same, but the driver is not woken for it.
  void post_quietly(protocol::primary::Event event);
  // Returns when the event was stepped and its effects are carried out, or nothing will be stepped any more. Not from
  // the driver's thread.
  void post_and_wait(protocol::primary::Event event);
  // Its id when it was admitted, else nothing and why. On the driver's thread; never called when the driver ends first.
  using Joined = std::function<void(std::optional<protocol::BackupId>, const std::string& why)>;
  // A backup that wants to join: it becomes one, or is told why not. Thread safe.
  void join(std::unique_ptr<protocol::Link> link, Joined joined = {});
  // As of the driver's last turn. Thread safe.
  [[nodiscard]] ReplicaStatus status() const;
  // Carries out everything posted so far, then ends the thread.
  void stop();
  // After stop(): what was sent to the backups, goodbyes above all, reaches them, if they take it in time.
  void flush(std::chrono::milliseconds timeout);
  // This host failed: steps nothing more, so that it claims no term which a backup should have, and closes every link
  // without a goodbye. Thread safe.
  void halt();

 private:
  struct Peer {
    std::shared_ptr<Shipper> shipper;
    bool down_reported = false;
  };

  struct Joiner {
    std::unique_ptr<protocol::Link> link;
    Joined joined;
  };

  void run();
  void step_posted_events();
  void step_links(bool activity, bool stalled, protocol::TimePoint turn);
  void admit_joiners();
  void admit(Joiner joiner);
  void turn_away(Joiner joiner, const std::string& why);
  void publish_status();
  void release_after_stall();
  void listen_to(Shipper& shipper);
  void let_leave(std::shared_ptr<Shipper> shipper);
  void receive_from(protocol::BackupId backup);
  void handle(std::vector<protocol::primary::Effect> effects);
  void forget_heals_of_the_lost();
  void carry_out(const protocol::primary::Send& effect);
  void carry_out(const protocol::primary::StartFullSync& effect);
  void carry_out(const protocol::primary::Protected& effect);
  void carry_out(const protocol::primary::Committed& effect);
  void carry_out(const protocol::primary::ExecutedByAll& effect);
  void carry_out(const protocol::primary::Heal& effect);
  void carry_out(const protocol::primary::Healed& effect);
  void carry_out(const protocol::primary::DropBackup& effect);
  void carry_out(const protocol::primary::Unprotected& effect);
  void carry_out(const protocol::primary::Replicating& effect);
  void carry_out(const protocol::primary::ClaimTerm& effect);
  void carry_out(const protocol::primary::Fenced& effect);
  void carry_out(const protocol::primary::ReleaseRefused& effect);
  void carry_out(const protocol::primary::HandoverRefused& effect);
  void carry_out(const protocol::primary::HandedOver& effect);
  void carry_out(const protocol::primary::TakenBack& effect);

  const std::chrono::nanoseconds silence_timeout_;
  // After a stall of this host's own. Its backups may have given it up meanwhile, and an Ack of theirs from before that lies
  // unread beside their goodbye: what it commits waits until whatever they said has been heard.
  protocol::TimePoint turn_began_{};
  protocol::TimePoint commits_held_until_{};
  std::optional<protocol::primary::Committed> held_commit_;
  std::vector<protocol::PageNumber> diverged_pages_;  // of the Divergence that is being handled
  const protocol::VmId vm_;
  protocol::PrimaryReplica replica_;
  EngineMailbox& mailbox_;
  Statistics& statistics_;
  const Callbacks callbacks_;
  const protocol::Claim claim_;
  const protocol::ReplicaId self_;
  bool unprotected_ = false;
  std::uint64_t departed_bytes_ = 0;  // sent to backups that were dropped since
  bool turned_away_said_ = false;  // one line is enough for one that asks again and again
  std::set<protocol::BackupId> protecting_;
  std::vector<SyncTarget> to_sync_;  // of the step in progress: the engine is asked for all at once

  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<protocol::primary::Event> events_;
  std::deque<Joiner> joining_;
  ReplicaStatus status_;
  // Changed by the driver's thread only, which therefore reads them without the lock.
  std::map<protocol::BackupId, Peer> peers_;
  std::deque<std::shared_ptr<Shipper>> leaving_;  // dropped or turned away, with a Goodbye perhaps still on its way
  std::uint64_t posted_ = 0;  // events, ever
  std::uint64_t stepped_ = 0;
  bool activity_ = false;  // some link has something to receive
  bool stopping_ = false;
  bool halted_ = false;
  std::thread thread_;
  std::thread claimant_;  // waits for the arbiter, while heartbeats go on
};

}  // namespace pollux::primary
