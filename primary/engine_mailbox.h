// What other threads tell the epoch engine: the replica thread (protocol) and the signal handler's thread.
#pragma once

#include <chrono>
#include <condition_variable>
#include <functional>
#include <map>
#include <mutex>
#include <optional>
#include <set>
#include <stop_token>
#include <string>
#include <vector>

#include "base/bytes.h"
#include "primary/sync_target.h"
#include "protocol/message.h"
#include "protocol/types.h"

namespace pollux::primary {

struct DigestAnswer {
  protocol::BackupId backup;
  protocol::DiskDigests header;
  Bytes digests;
};

// How an operator's wish to hand the machine over ended.
struct HandoverOutcome {
  enum class Kind {
    kHandedOver,  // another replica leads
    kTakenBack,   // it failed, and this one leads on
    kRefused,     // not now: nothing has changed
  };
  Kind kind = Kind::kRefused;
  std::string reason;
  std::chrono::nanoseconds stood_still{};  // the guest, here, until this was known
};

// Lockstep: a backup whose epoch ended otherwise than here.
struct HealRequest {
  protocol::BackupId backup;
  protocol::EpochId epoch;
  std::vector<protocol::PageNumber> pages;  // it names; beside those that changed here since
  bool all_pages = false;
};

// Thread safe.
class EngineMailbox {
 public:
  // Told by the replica thread.
  void start_full_sync(std::vector<SyncTarget> backups);
  void digests(DigestAnswer answer);
  void reached(protocol::BackupId backup, protocol::SyncMark mark);
  void committed(protocol::EpochId epoch);
  void executed(protocol::EpochId epoch);  // lockstep: by all who are required
  void heal(HealRequest request);
  void forget_heal(protocol::BackupId backup);  // it is lost
  void dropped(protocol::BackupId backup);
  void unprotected();
  void replicating();  // unprotected no more
  void handover_ended(HandoverOutcome outcome);
  // A backup is lost or given up, and the arbiter is being asked who goes on: nothing is committed meanwhile.
  void set_claiming(bool claiming);
  // And it could not be asked so far.
  void set_undecided(bool undecided);
  // Told by anyone: the guest is to stand still, or to run again.
  void set_held(bool held);
  // Told by anyone: hand the machine over to this backup; false: that is under way already.
  bool request_handover(protocol::BackupId to);
  // Told by anyone: end the machine in an orderly way.
  void stop();
  // This host failed, or another leads: as stop(), and what is held may never leave.
  void fail();

  // Asked by the engine.
  [[nodiscard]] bool stopping() const;
  [[nodiscard]] bool failed() const;
  [[nodiscard]] bool is_claiming() const;
  [[nodiscard]] bool is_undecided() const;
  [[nodiscard]] bool is_held() const;
  [[nodiscard]] std::optional<protocol::BackupId> requested_handover() const;
  [[nodiscard]] std::optional<HandoverOutcome> handover_outcome() const;
  [[nodiscard]] bool is_unprotected() const;
  [[nodiscard]] bool is_dropped(protocol::BackupId backup) const;
  [[nodiscard]] protocol::EpochId committed() const;
  // The backups whose sync was asked for and not begun.
  std::vector<SyncTarget> take_sync_requests();
  // The next answer of this backup; nothing after it was dropped or the engine is to stop.
  std::optional<DigestAnswer> wait_for_digests(protocol::BackupId backup);
  // Until this backup has sent the mark back. False when it was dropped or the engine is to stop.
  bool wait_for_mark(protocol::BackupId backup, protocol::SyncMark mark);
  // Waits until `epoch` is committed, protection is lost, the host failed, or the timeout. True when committed.
  bool wait_for_commit(protocol::EpochId epoch, std::chrono::nanoseconds timeout);
  // Lockstep: waits until the backups are so far, or something is to be done that makes this wait moot (an order, a heal,
  // the loss of protection), at most so long. True when they are.
  bool wait_for_progress(protocol::EpochId committed, protocol::EpochId executed, std::chrono::nanoseconds timeout);
  [[nodiscard]] bool has_progressed(protocol::EpochId committed, protocol::EpochId executed) const;
  [[nodiscard]] protocol::EpochId executed() const;
  [[nodiscard]] bool has_heals() const;
  [[nodiscard]] std::vector<protocol::BackupId> heals() const;  // whose
  // Those that were asked for and not taken yet.
  std::vector<HealRequest> take_heals();
  // How many of the changes came so far that a guest in the midst of an epoch is not to be kept waiting for.
  [[nodiscard]] std::uint64_t urgent() const;
  // Waits until there are more than `seen`, at most so long or until it is to stop; how many there are.
  std::uint64_t wait_for_urgent(std::uint64_t seen, std::chrono::nanoseconds timeout, const std::stop_token& stop = {});
  // Waits for a change of anything above, at most so long.
  void wait_for_news(std::chrono::nanoseconds timeout);

  // Told by the engine: the guest stands still because it is held, or does not any more.
  void set_standing(bool standing);
  // Told by the engine: for the handover the guest stands still since then.
  void handover_began(std::chrono::steady_clock::time_point since);
  // Told by the engine when nobody can be asked any more.
  void close();
  // Asked by whoever waits for what it told. False: not within the timeout, or the machine has ended.
  bool wait_until_standing(bool standing, std::chrono::nanoseconds timeout);
  // Nothing: not within the timeout, or the machine ended otherwise. The next handover may be requested then.
  std::optional<HandoverOutcome> wait_for_handover(std::chrono::nanoseconds timeout);

 private:
  void tell_urgent();

  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::condition_variable urgent_changed_;  // by itself: whoever waits for it is not woken by every commit
  std::vector<SyncTarget> sync_requests_;
  // The last of each backup: the engine asks for one at a time, and what nobody asked for is not kept.
  std::map<protocol::BackupId, DigestAnswer> answers_;
  std::map<protocol::BackupId, protocol::SyncMark> marks_;  // the last of each
  std::set<protocol::BackupId> dropped_;  // without those dropped before the last sync began
  protocol::EpochId committed_{};
  protocol::EpochId executed_{};
  std::map<protocol::BackupId, HealRequest> heals_;
  std::uint64_t urgent_ = 0;
  std::optional<protocol::BackupId> handover_;  // requested and not over
  std::optional<HandoverOutcome> outcome_;      // of the last one
  std::optional<std::chrono::steady_clock::time_point> handover_since_;
  bool unprotected_ = false;
  bool claiming_ = false;
  bool undecided_ = false;
  bool held_ = false;
  bool standing_ = false;
  bool closed_ = false;
  bool stopping_ = false;
  bool failed_ = false;
};

}  // namespace pollux::primary
