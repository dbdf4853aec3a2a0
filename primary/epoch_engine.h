// Runs the guest in epochs: pause, take what changed aside, resume; then let the record go to the backups while
// the guest runs on.
//
// What happens while the guest stands still is all in close_epoch(), up to its resume: that is the epoch's pause,
// and its floor is one memcpy of the dirty pages.
//
// An operator may hold the guest: it stands still at the end of an epoch, no epoch is cut, and everything else goes on.
// A handover ends the engine with the guest standing still for good.
//
// In lockstep (lockstep_epochs.cc) the machine is not paused and resumed, but run from one epoch's end to the next on this
// thread, and what an epoch took from outside is its record. Dirty tracking is on only while somebody joins.
//
// Protection may come and go: a full sync for whom the mailbox names makes the machine protected, epochs go to these
// backups only, and when none is left everything held is let out; until the next full sync. Epoch numbers go on.
#pragma once

#include <chrono>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <vector>

#include "primary/engine_mailbox.h"
#include "primary/full_sync.h"
#include "primary/holding_gate.h"
#include "primary/joiner_sync.h"
#include "primary/lockstep_options.h"
#include "primary/lockstep_recorder.h"
#include "primary/page_pool.h"
#include "primary/statistics.h"
#include "protocol/primary_replica.h"
#include "vmm/machine/machine.h"

namespace pollux::primary {

// Epochs closed and not yet committed. When there are as many, the running epoch is lengthened. In lockstep the guest waits
// when there are LockstepOptions::max_lag; beyond them each backup that diverged may be healed once, which takes an epoch.
inline constexpr std::uint64_t kMaxEpochsInFlight = 4;

class EpochEngine {
 public:
  struct Options {
    std::chrono::milliseconds epoch_length{20};
    // Lockstep: the machine, which is a deterministic one, and how; null: copy.
    vmm::DeterministicMachine* deterministic = nullptr;
    LockstepOptions lockstep;
    std::uint64_t remembered_limit = 0;  // bytes kept to heal with; beyond them the guest waits
    protocol::EpochId closed;  // where the epochs go on from
    // Called on run()'s thread several times a second, the machine running; may be empty.
    std::function<void(const vmm::Machine&)> on_turn;
  };
  // Hand an event to the replica thread; post_and_wait returns when it was stepped. post_quietly does not wake it: nothing
  // is to be done about the event before a backup's next message, at the latest the next heartbeat.
  struct Replica {
    std::function<void(protocol::primary::Event)> post;
    std::function<void(protocol::primary::Event)> post_quietly;
    std::function<void(protocol::primary::Event)> post_and_wait;
  };

  // `pool` for the epochs' pages, `joiner_pool` for those of a backup that joins meanwhile.
  EpochEngine(vmm::Machine& machine, vmm::Backends& backends, HoldingGate& gate, PagePool& pool, PagePool& joiner_pool,
              EngineMailbox& mailbox, Statistics& statistics, Replica replica, Options options);

  // Runs the machine (paused when called) until it ends or the mailbox says stop; everything it emitted has then
  // been committed and let out, unless this host failed: then nothing more is. The calling thread is the machine's
  // controlling thread.
  vmm::MachineExit run();
  // How run() ended: another replica was asked to lead, and this one did not take it back.
  [[nodiscard]] bool handed_over() const { return handed_over_; }
  // Or: it was stopped while nobody could say whether its last outputs may leave, so they did not.
  [[nodiscard]] bool given_up() const { return given_up_; }

  // From the replica thread: outputs of every epoch up to `epoch` may leave. `durable_first`: protection is lost
  // and the own image must be durable before; run() sees to that.
  void committed(protocol::EpochId epoch, bool durable_first);

 private:
  using Clock = std::chrono::steady_clock;
  struct ClosedEpoch {
    protocol::EpochId epoch;
    Clock::time_point at;
  };

  std::optional<vmm::MachineExit> run_unprotected();
  std::optional<vmm::MachineExit> run_protected();
  void sync(std::vector<SyncTarget> backups);
  std::optional<vmm::MachineExit> run_epoch();
  void hold_guest(protocol::EpochId oldest);
  std::optional<vmm::MachineExit> wait(std::chrono::nanoseconds time);
  void pause();    // whether it stands still already or not
  void let_run();  // unless it is held
  bool stands_still();
  vmm::MachineExit end_by_handover(const char* detail);
  std::optional<vmm::MachineExit> hand_over(protocol::BackupId to);
  bool commit_all(std::chrono::nanoseconds timeout);
  enum class Then { kRun, kStandStill };
  // Returns the state at its end.
  std::shared_ptr<const Bytes> close_epoch(Then then = Then::kRun);
  void tend_joiner();
  void end_joiner();
  void finish_joiner();
  std::vector<std::unique_ptr<PageChunk>> copy_pages(const std::vector<vmm::Gfn>& gfns);
  void ship_pages(std::unique_ptr<const PageChunk> chunk);
  void ship_in_epoch(const Parcel& parcel);
  void ship(const Parcel& parcel);
  void finish();
  void lose_protection();

  // Lockstep.
  [[nodiscard]] bool in_lockstep() const { return recorder_ != nullptr; }
  std::optional<vmm::MachineExit> run_lockstep();
  std::optional<vmm::MachineExit> wait_between_epochs();
  // What the next epoch waits for.
  struct Awaited {
    const char* what;
    protocol::EpochId committed;
    protocol::EpochId executed;
  };
  [[nodiscard]] std::optional<Awaited> awaited_progress() const;
  [[nodiscard]] bool may_heal_now() const;
  void say_heal_waits(protocol::BackupId backup);
  void wait_for(const Awaited& awaited);
  std::optional<vmm::MachineExit> end_lockstep_epoch();
  enum class State { kIfNeeded, kSaved };
  // Returns the state at its end, if that was saved.
  std::shared_ptr<const Bytes> close_lockstep_epoch(State saved = State::kIfNeeded);
  [[nodiscard]] bool may_finish_joiner() const;
  [[nodiscard]] bool may_wait_in_batch(const HeldEpoch& held) const;
  void send_batch();
  std::vector<Parcel> input_parcels(const LockstepRecorder::Record& record, bool flushed);
  void ship_heal(const HealRequest& request, const std::shared_ptr<const Bytes>& state);

  vmm::Machine& machine_;
  vmm::Backends& backends_;
  HoldingGate& gate_;
  PagePool& pool_;
  PagePool& joiner_pool_;
  EngineMailbox& mailbox_;
  Statistics& statistics_;
  Replica replica_;
  Options options_;

  bool protected_ = false;  // the gate holds, epochs are cut
  bool handed_over_ = false;
  bool given_up_ = false;
  std::unique_ptr<LockstepRecorder> recorder_;  // while protected in lockstep
  // Records of closed epochs for which nobody waits yet: waking the threads that carry them costs as much as a short epoch
  // takes. None waits longer than kLongestUnsent, or, if the next epoch takes longer than the last one did, than the
  // Interrupter's interval.
  struct Batch {
    std::vector<protocol::primary::Event> closed;
    std::vector<Parcel> parcels;
    Clock::time_point since;
  };
  Batch batch_;
  std::map<protocol::BackupId, protocol::EpochId> healed_at_;  // the last record of pages of each; of kMaxBackups at most
  std::set<protocol::BackupId> heal_waits_said_;
  const char* said_awaited_ = nullptr;  // what the guest waits for, if the log has it
  Clock::time_point awaited_since_;
  std::vector<SyncTarget> backups_;  // while protected: who gets the epochs' records
  std::unique_ptr<JoinerSync> joiner_;  // while protected: who will
  protocol::EpochId joiner_tried_at_;   // lockstep: the last epoch that was not committed in time to finish a joiner
  protocol::EpochId closed_;
  // What has been shipped of the epoch that is being closed.
  std::uint64_t pages_ = 0;
  std::uint64_t zero_pages_ = 0;
  std::uint64_t bytes_ = 0;
  bool open_shipped_ = false;

  std::mutex in_flight_mutex_;
  std::deque<ClosedEpoch> in_flight_;  // closed, not committed; see kMaxEpochsInFlight
};

}  // namespace pollux::primary
