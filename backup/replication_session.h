// One primary's replication into this backup, from its Hello to the decision: promote, or end.
//
// Threads: run()'s thread receives, stages and steps the protocol state machine; the Applier writes the image.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>

#include "backup/applier.h"
#include "backup/epoch_record.h"
#include "backup/replica_image.h"
#include "protocol/backup_replica.h"
#include "protocol/claim.h"
#include "protocol/link/link.h"

namespace pollux::backup {

struct SessionStatus {
  protocol::VmId vm = {};
  protocol::Term term = {};
  protocol::BackupReplica::State state = protocol::BackupReplica::State::kIdle;
  protocol::EpochId whole = {};
  protocol::EpochId acknowledged = {};
  std::uint64_t staged_bytes = 0;
  std::string primary = {};  // its address
};

struct SessionOutcome {
  bool promote = false;
  bool again = false;           // nothing was touched: another primary may come
  bool failed = false;          // ended, and not as it should
  bool fenced = false;          // because another replica leads the machine
  std::string reason = {};      // why the primary counts as lost, or why it is over
  protocol::VmId vm = {};
  protocol::Term term = {};      // promote: won, and
  protocol::EpochId epoch = {};  // the machine goes on from the end of this epoch
  bool uncertain_io = false;     // what is outstanding at its devices was performed, or was not
  protocol::TimePoint epoch_received = {};  // when its record was whole
  protocol::TimePoint last_heard = {};      // last byte of the primary
  protocol::TimePoint detected = {};        // when the primary was declared lost
};

// Disk writes and state of a record, beside its pages: staging memory must be larger than the guest by so much.
inline constexpr std::uint64_t kRecordMargin = 128 << 20;

// How a replica behaves in lockstep.
struct LockstepSettings {
  protocol::OnDivergence on_divergence = protocol::OnDivergence::kHeal;
  vmm::EpochLength epoch_length;  // of its machine, once it is promoted
};

class ReplicationSession {
 public:
  // Throws Error when this host could not run the machine from that state.
  using Rehearsal = std::function<void(const vmm::MachineConfig& config, ByteView state)>;

  // Receiving stops while more than `staging_bytes` of whole records wait to be applied; one record may hold at
  // most as many. `rehearsal` is tried with the state at the end of the full sync, before that is acknowledged.
  ReplicationSession(std::unique_ptr<protocol::Link> link, vmm::Backends& backends, protocol::Timing timing,
                     std::uint64_t staging_bytes, Rehearsal rehearsal, protocol::Claim claim, LockstepSettings lockstep = {});
  ~ReplicationSession();

  SessionOutcome run();
  // Any thread: end without promotion.
  void stop();
  // Any thread: as of the last step.
  [[nodiscard]] SessionStatus status() const;

  // After run() said promote: every whole record is applied, and was before the term was claimed.
  [[nodiscard]] ReplicaImage& image() { return *image_; }
  // In lockstep, after the same: the machine, which has the image's memory. Null: copy.
  [[nodiscard]] std::unique_ptr<ExecutingMachine> take_machine() { return lockstep_ ? lockstep_->give_up() : nullptr; }

 private:
  void wait_for_work();
  protocol::TimePoint last_heard();
  void receive_some();
  void receive_one(protocol::Received received);
  void set_diverged(DivergedEpoch diverged);
  void take_body(const protocol::Message& message, Bytes body);
  void step(const protocol::backup::Event& event);
  void publish_status();
  void step_posted_events();
  enum class Wake { kYes, kNo };
  void post(protocol::backup::Event event, Wake wake = Wake::kYes);
  void send(const protocol::Message& message, ByteView body = {});
  void send_ack();
  void fail(const std::string& reason);
  [[nodiscard]] std::string failure_of_disk();
  void handle(std::vector<protocol::backup::Effect> effects);
  void carry_out(const protocol::backup::Send& effect);
  void carry_out(const protocol::backup::ExamineHello& effect);
  void carry_out(const protocol::backup::BeginSync& effect);
  void carry_out(const protocol::backup::ApplyEpoch& effect);
  void carry_out(const protocol::backup::MakeDurable& effect);
  void carry_out(const protocol::backup::MakeSyncDurable& effect);
  void carry_out(const protocol::backup::ReportDivergence& effect);
  void carry_out(const protocol::backup::DiscardPartial& effect);
  void carry_out(const protocol::backup::Disconnect& effect);
  void carry_out(const protocol::backup::ClaimTerm& effect);
  void carry_out(const protocol::backup::Promote& effect);
  void carry_out(const protocol::backup::Fenced& effect);
  void carry_out(const protocol::backup::End& effect);

  std::unique_ptr<protocol::Link> link_;
  vmm::Backends& backends_;
  const std::uint64_t staging_bytes_;
  const Rehearsal rehearsal_;
  const protocol::Claim claim_;
  const protocol::ReplicaId self_ = protocol::ReplicaId::random();
  protocol::BackupReplica replica_;
  const vmm::EpochLength epoch_length_;
  std::unique_ptr<ReplicaImage> image_;
  std::unique_ptr<LockstepReplica> lockstep_;  // null: copy
  std::unique_ptr<Applier> applier_;
  EpochRecord staged_;
  std::optional<SessionOutcome> outcome_;
  protocol::VmId vm_;
  protocol::TimePoint last_whole_at_;
  protocol::TimePoint detected_;
  bool link_down_seen_ = false;
  bool unread_ = false;  // the link may hold more than was taken of it
  bool refused_ = false;
  bool sync_begun_ = false;
  std::optional<protocol::Ack> ack_;  // of this turn, not yet sent: it speaks for those before it
  bool handed_over_ = false;  // it claims because the primary asked for it
  bool sync_complete_ = false;
  const std::chrono::nanoseconds silence_timeout_;
  protocol::TimePoint last_turn_;

  mutable std::mutex mutex_;
  SessionStatus status_;
  std::condition_variable changed_;
  std::deque<protocol::backup::Event> events_;
  std::string disk_failure_;
  DivergedEpoch diverged_;  // the last; its event is posted
  bool activity_ = false;
  bool stop_requested_ = false;
};

}  // namespace pollux::backup
