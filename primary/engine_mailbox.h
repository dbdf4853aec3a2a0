// What other threads tell the epoch engine: the replica thread (protocol) and the signal handler's thread.
#pragma once

#include <chrono>
#include <condition_variable>
#include <functional>
#include <map>
#include <mutex>
#include <optional>
#include <set>
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

// Thread safe.
class EngineMailbox {
 public:
  // Told by the replica thread.
  void start_full_sync(std::vector<SyncTarget> backups);
  void digests(DigestAnswer answer);
  void reached(protocol::BackupId backup, protocol::SyncMark mark);
  void committed(protocol::EpochId epoch);
  void dropped(protocol::BackupId backup);
  void unprotected();
  void replicating();  // unprotected no more
  // Told by anyone: end the machine in an orderly way.
  void stop();
  // This host failed, or another leads: as stop(), and what is held may never leave.
  void fail();

  // Asked by the engine.
  [[nodiscard]] bool stopping() const;
  [[nodiscard]] bool failed() const;
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

 private:
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<SyncTarget> sync_requests_;
  // The last of each backup: the engine asks for one at a time, and what nobody asked for is not kept.
  std::map<protocol::BackupId, DigestAnswer> answers_;
  std::map<protocol::BackupId, protocol::SyncMark> marks_;  // the last of each
  std::set<protocol::BackupId> dropped_;  // without those dropped before the last sync began
  protocol::EpochId committed_{};
  bool unprotected_ = false;
  bool stopping_ = false;
  bool failed_ = false;
};

}  // namespace pollux::primary
