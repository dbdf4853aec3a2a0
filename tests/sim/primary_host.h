// The host of a primary, the first one or a promoted backup: PrimaryReplica, and an epoch engine reduced to its promises (held
// outputs, records in order, SyncFinished before SyncEnd, a bounded number of epochs in flight, one joiner at a time).
#pragma once

#include <optional>
#include <vector>

#include "base/error.h"
#include "host.h"
#include "invariants.h"
#include "mutants.h"

namespace pollux::sim {

class BackupHost;

inline constexpr std::size_t kMaxEpochsInFlight = 4;

class PrimaryHost : public Host {
 public:
  // What the world knows of a backup beside the state machine's own opinion.
  struct Peer {
    BackupHost* host = nullptr;
    std::size_t link = 0;
    bool up = false;
    bool sync_end_sent = false;
    bool dropped = false;
    std::uint64_t sync_steps_left = 0;
    bool sync_ready = false;
    std::uint64_t sync_pages = 0;
    protocol::EpochId base;
    // It holds this epoch or must, before outputs leave. What was before its full sync may have been committed alone.
    [[nodiscard]] bool vouches_for(protocol::EpochId epoch) const;
  };

  // The first one. Its backups connect, or never_connects().
  PrimaryHost(World& world, HostId id, std::size_t site, std::int64_t drift_ppm, protocol::PrimaryConfig config, Mutant mutant);
  // What a backup becomes when it leads: the same replica, with its disk and its guest.
  PrimaryHost(World& world, const BackupHost& promoted, protocol::PrimaryConfig config, Mutant mutant);

  void start();
  // Orders that mean one of its backups; `pick` says which.
  void operator_switch(std::size_t pick);
  void operator_release(std::size_t pick);
  void connect(std::size_t backup, std::size_t link, BackupHost& host);
  void never_connects(std::size_t backup);
  // A backup that joins on this link. False: it was turned away.
  bool admit(std::size_t link, BackupHost& host);
  void receive_all() override;
  void operator_stop() override;

  [[nodiscard]] protocol::Term leads_in() const override { return replica_.term(); }
  [[nodiscard]] const Peer& peer(std::size_t backup) const { return peers_[backup]; }
  [[nodiscard]] std::size_t peers() const { return peers_.size(); }
  [[nodiscard]] bool fenced() const override { return fenced_; }
  [[nodiscard]] bool succeeded() const { return first_ != protocol::EpochId{0}; }  // another primary
  [[nodiscard]] bool ended() const { return ended_; }
  [[nodiscard]] protocol::EpochId previous_flush(protocol::EpochId epoch) const;  // 0: none
  [[nodiscard]] bool flushed(protocol::EpochId epoch) const { return at(epoch).flushed; }
  [[nodiscard]] GuestState at_end_of(protocol::EpochId epoch) const { return guest_.at(at(epoch).end); }
  [[nodiscard]] bool is_over() const override { return !alive_ || fenced_ || ended_; }
  void check(Checker& checker) const override { checker.holds(*this); }
  [[nodiscard]] protocol::EpochId committed() const { return replica_.committed(); }
  [[nodiscard]] protocol::EpochId closed() const { return closed_; }
  [[nodiscard]] std::vector<std::size_t> links() const override;
  [[nodiscard]] Direction sends() const override { return Direction::kToBackup; }
  // A backup is ready to take over, and none is in doubt.
  [[nodiscard]] bool is_protected() const;

 private:
  struct Epoch {
    std::size_t end = 0;  // the guest's position
    bool flushed = false;
  };

  void tick() override;
  void on_epoch() override;
  void on_sync_step(std::size_t backup) override;
  void on_disk(Disk::Job job) override;
  void on_disk_failure() override;
  void on_claim_answer(protocol::Term term, protocol::Verdict verdict) override;
  void on_stall() override;
  [[nodiscard]] std::optional<protocol::TimePoint> next_deadline() const override {
    return replica_.next_deadline();
  }

  [[nodiscard]] const Epoch& at(protocol::EpochId epoch) const { return epochs_[epoch.value - first_.value]; }
  [[nodiscard]] std::optional<protocol::BackupId> pick(std::size_t pick) const;
  void hang_up(Peer& peer);
  void step(const protocol::primary::Event& event);
  void handle_effects(const PrimaryUnderTest::Effects& effects);
  void carry_out(const protocol::primary::Send& effect);
  void carry_out(const protocol::primary::StartFullSync& effect);
  void carry_out(const protocol::primary::Protected&);
  void carry_out(const protocol::primary::Committed& effect);
  void carry_out(const protocol::primary::DropBackup& effect);
  void carry_out(const protocol::primary::Unprotected&);
  void carry_out(const protocol::primary::Replicating&);
  void carry_out(const protocol::primary::ClaimTerm& effect);
  void carry_out(const protocol::primary::Fenced& effect);
  void carry_out(const protocol::primary::ReleaseRefused& effect);
  void carry_out(const protocol::primary::HandoverRefused& effect);
  void carry_out(const protocol::primary::HandedOver& effect);
  void carry_out(const protocol::primary::TakenBack& effect);
  template <class OfLockstep>
  void carry_out(const OfLockstep&) {
    POLLUX_ASSERT(!"only copy is simulated");
  }

  void stand_still();
  void run_on();
  void run_unheld();
  void close_epoch();
  void ship_record(protocol::EpochId epoch, std::size_t backup);
  void finish_syncs();
  void end_when_committed();
  void send(std::size_t backup, protocol::Message message, GuestState body = {});

  PrimaryUnderTest replica_;
  std::vector<Peer> peers_;  // by BackupId
  protocol::EpochId first_;    // its epochs go on from here: the end of the first full sync, or of the promoted epoch
  std::vector<Epoch> epochs_;  // from first_ on
  std::deque<Outputs> held_;
  bool holding_ = false;  // from the first SyncEnd on
  bool alone_ = false;
  bool fenced_ = false;
  bool stopping_ = false;
  bool ended_ = false;
  bool joined_ = false;  // a backup, after it was alone
  const Mutant mutant_;
  std::optional<protocol::BackupId> wanted_;  // to lead
  bool stands_still_ = false;                 // for that, its last epoch closed
  bool asked_ = false;                        // HandOver is on its way
  int patience_ = 0;
  protocol::EpochId closed_;
};

}  // namespace pollux::sim
