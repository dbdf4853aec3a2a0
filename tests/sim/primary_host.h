// The host of the primary: PrimaryReplica, and an epoch engine reduced to its promises (held outputs, records
// in order, SyncFinished before SyncEnd, a bounded number of epochs in flight).
#pragma once

#include <optional>

#include "base/error.h"
#include "host.h"
#include "mutants.h"

namespace pollux::sim {

inline constexpr std::size_t kMaxEpochsInFlight = 4;

class PrimaryHost : public Host {
 public:
  // What the world knows of a backup beside the state machine's own opinion.
  struct Peer {
    bool up = false;
    bool sync_end_sent = false;
    bool dropped = false;
    std::uint64_t sync_steps_left = 0;
    bool sync_ready = false;
    std::uint64_t sync_pages = 0;
    protocol::EpochId base;
  };

  PrimaryHost(World& world, std::int64_t drift_ppm, protocol::PrimaryConfig config, Mutant mutant);

  void start();
  void operator_switch(std::size_t to);
  void operator_release(std::size_t backup);
  void connect(std::size_t backup);
  void never_connects(std::size_t backup);
  void receive_all() override;
  void operator_stop() override;

  [[nodiscard]] protocol::Term leads_in() const override { return replica_.term(); }
  [[nodiscard]] const Peer& peer(std::size_t backup) const { return peers_[backup]; }
  [[nodiscard]] std::size_t peers() const { return peers_.size(); }
  [[nodiscard]] bool fenced() const { return fenced_; }
  [[nodiscard]] bool ended() const { return ended_; }
  [[nodiscard]] bool handed_over() const { return handed_over_; }
  [[nodiscard]] bool alone() const { return alone_; }
  [[nodiscard]] protocol::EpochId previous_flush(protocol::EpochId epoch) const;  // 0: none
  [[nodiscard]] bool flushed(protocol::EpochId epoch) const { return epochs_[epoch.value].flushed; }
  [[nodiscard]] GuestState at_end_of(protocol::EpochId epoch) const {
    return guest_.at(epochs_[epoch.value].end);
  }

 private:
  struct Epoch {
    std::size_t end = 0;  // the guest's position
    bool flushed = false;
  };

  void tick() override;
  void on_epoch() override;
  void on_sync_step(std::size_t backup) override;
  void on_disk(Disk::Job job) override;
  void on_claim_answer(protocol::Term term, protocol::Verdict verdict) override;
  void on_stall() override;
  [[nodiscard]] std::optional<protocol::TimePoint> next_deadline() const override {
    return replica_.next_deadline();
  }

  void step(const protocol::primary::Event& event);
  void handle_effects(const PrimaryUnderTest::Effects& effects);
  void carry_out(const protocol::primary::Send& effect);
  void carry_out(const protocol::primary::StartFullSync& effect);
  void carry_out(const protocol::primary::Protected&) {}
  void carry_out(const protocol::primary::Committed& effect);
  void carry_out(const protocol::primary::ExecutedByAll&) { POLLUX_ASSERT(!"only copy is simulated"); }
  void carry_out(const protocol::primary::Heal&) { POLLUX_ASSERT(!"only copy is simulated"); }
  void carry_out(const protocol::primary::Healed&) { POLLUX_ASSERT(!"only copy is simulated"); }
  void carry_out(const protocol::primary::DropBackup& effect);
  void carry_out(const protocol::primary::Unprotected&);
  void carry_out(const protocol::primary::Replicating&) { alone_ = false; }
  void carry_out(const protocol::primary::ClaimTerm& effect);
  void carry_out(const protocol::primary::Fenced& effect);
  void carry_out(const protocol::primary::ReleaseRefused& effect);
  void carry_out(const protocol::primary::HandoverRefused& effect);
  void carry_out(const protocol::primary::HandedOver& effect);
  void carry_out(const protocol::primary::TakenBack& effect);

  void stand_still();
  void run_on();
  void run_unheld();
  void close_epoch();
  void ship_record(protocol::EpochId epoch, std::size_t backup);
  void finish_syncs();
  void end_when_committed();
  void send(std::size_t backup, protocol::Message message, GuestState body = {});

  PrimaryUnderTest replica_;
  std::vector<Peer> peers_;
  std::vector<Epoch> epochs_;  // by EpochId; 0: the end of the first full sync
  std::deque<Outputs> held_;
  bool holding_ = false;  // from the first SyncEnd on
  bool alone_ = false;
  bool fenced_ = false;
  bool stopping_ = false;
  bool ended_ = false;
  bool handed_over_ = false;
  const Mutant mutant_;
  std::optional<protocol::BackupId> wanted_;  // to lead
  bool stands_still_ = false;                 // for that, its last epoch closed
  bool asked_ = false;                        // HandOver is on its way
  int patience_ = 0;
  protocol::EpochId closed_{};
};

}  // namespace pollux::sim
