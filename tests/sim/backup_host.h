// The host of a backup: BackupReplica, and an engine that stages records, and applies them on its disk's time. Promoted,
// with everything applied, it has done its part: the world makes a PrimaryHost of it.
#pragma once

#include <optional>

#include "base/error.h"
#include "host.h"
#include "invariants.h"
#include "mutants.h"
#include "network.h"

namespace pollux::sim {

class PrimaryHost;

class BackupHost : public Host {
 public:
  // It receives nothing while more than this is staged.
  static constexpr std::uint64_t kStagingBytes = 256 << 10;
  static constexpr std::uint64_t kMaxRecordBytes = 64 << 10;
  // A record has a page at least, and may have to be made durable, too.
  static constexpr std::size_t kMaxDiskJobs = 2 * ((kStagingBytes + kMaxRecordBytes) / kPageSize);

  BackupHost(World& world, HostId id, std::size_t site, std::int64_t drift_ppm, protocol::BackupConfig config, Mutant mutant);

  // A link to this primary is up. Again only when it was turned away: wants_link().
  void connect(std::size_t link, PrimaryHost& primary);
  void receive_all() override;
  void operator_stop() override;
  void run_out_of_memory();
  void refuse_next() { refuses_ = true; }

  [[nodiscard]] protocol::Term leads_in() const override { return leads_in_; }
  // The primary it was last connected to, on its last link.
  [[nodiscard]] const PrimaryHost& primary() const { return *primary_; }
  [[nodiscard]] protocol::BackupReplica::State state() const { return replica_.state(); }
  [[nodiscard]] bool wants_link() const { return runs() && !failed_ && !up_ && replica_.state() == protocol::BackupReplica::State::kIdle; }
  [[nodiscard]] bool promoting() const { return alive_ && promote_to_.has_value(); }
  [[nodiscard]] protocol::EpochId promoted_to() const { return *promote_to_; }
  [[nodiscard]] bool is_over() const override;
  [[nodiscard]] std::vector<std::size_t> links() const override;
  [[nodiscard]] Direction sends() const override { return Direction::kToPrimary; }
  [[nodiscard]] std::optional<protocol::EpochId> acknowledged() const { return acknowledged_; }
  [[nodiscard]] protocol::Term told_term() const { return told_term_; }
  [[nodiscard]] bool fenced() const override { return fenced_; }
  [[nodiscard]] bool heard_goodbye() const { return heard_goodbye_; }
  void check(Checker& checker) const override { checker.holds(*this); }
  [[nodiscard]] std::uint64_t staged_bytes() const { return replica_.staged_bytes(); }
  [[nodiscard]] protocol::EpochId last_whole() const { return replica_.last_whole(); }
  // It lives, has all of the machine, and nobody told it to end: it can take over when its primary is gone.
  [[nodiscard]] bool could_lead() const { return alive_ && !failed_ && synced_ && !stopped_by_operator_ && !heard_goodbye_; }

 private:
  // The pieces of a record that came.
  struct Record {
    std::optional<GuestState> pages;
    std::optional<GuestState> state;
  };

  void tick() override;
  void on_examined(std::size_t link) override;
  void on_lead() override;
  void on_disk(Disk::Job job) override;
  void on_disk_failure() override;
  void on_claim_answer(protocol::Term term, protocol::Verdict verdict) override;
  void on_stall() override;
  [[nodiscard]] std::optional<protocol::TimePoint> next_deadline() const override;

  void receive(const Packet& packet);
  void take_body(const protocol::Message& message, GuestState body);
  void step(const protocol::backup::Event& event);
  void handle_effects(const BackupUnderTest::Effects& effects);
  void carry_out(const protocol::backup::Send& effect);
  void carry_out(const protocol::backup::ExamineHello&);
  void carry_out(const protocol::backup::BeginSync&) {}
  void carry_out(const protocol::backup::ApplyEpoch& effect);
  void carry_out(const protocol::backup::MakeDurable& effect);
  void carry_out(const protocol::backup::MakeSyncDurable& effect);
  void carry_out(const protocol::backup::ReportDivergence&) { POLLUX_ASSERT(!"only copy is simulated"); }
  void carry_out(const protocol::backup::DiscardPartial&) { staged_ = {}; }
  void carry_out(const protocol::backup::Disconnect&);
  void carry_out(const protocol::backup::ClaimTerm& effect);
  void carry_out(const protocol::backup::Promote& effect);
  void carry_out(const protocol::backup::Fenced&);
  void carry_out(const protocol::backup::End&);
  void claim_when_applied();
  void lead_when_applied();
  // It says so, and ends.
  void fail(const char* why);
  void hang_up();

  BackupUnderTest replica_;
  PrimaryHost* primary_ = nullptr;
  std::size_t link_ = 0;
  Record staged_;
  std::deque<Record> to_apply_;
  GuestState pages_;  // of the image
  GuestState state_;
  bool up_ = false;
  bool refuses_ = false;
  bool failed_ = false;
  bool heard_goodbye_ = false;
  bool fenced_ = false;
  std::optional<protocol::EpochId> acknowledged_;
  protocol::Term told_term_{};
  std::optional<protocol::Term> to_claim_;  // when everything is applied
  bool member_ = false;                     // of the term that its own primary won
  bool synced_ = false;
  const Mutant mutant_;
  std::optional<protocol::EpochId> promote_to_;
  bool leads_soon_ = false;
  protocol::Term leads_in_{};
};

}  // namespace pollux::sim
