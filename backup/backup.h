// A backup: waits for its primary or joins one that runs, keeps an image of the primary's machine, and is promoted when
// the primary dies.
#pragma once

#include <chrono>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "backup/failover.h"
#include "protocol/claim.h"
#include "protocol/link/link.h"
#include "vmm/machine/machine.h"

namespace pollux::backup {

// A primary that may be joined.
struct JoinPoint {
  protocol::Address address;
  protocol::session::PublicKey key;
};

struct BackupOptions {
  // One of the two at least. With `join` nobody is waited for on `listen`: it is for the time after a promotion. Of
  // several to join each is tried in turn.
  std::optional<protocol::Address> listen;
  std::vector<JoinPoint> join;
  std::vector<protocol::session::PublicKey> primary_keys;  // accepted on `listen`
  std::chrono::milliseconds heartbeat_interval{100};
  std::chrono::milliseconds silence_timeout{1000};
  std::uint64_t staging_bytes = std::uint64_t{1} << 30;
  LockstepSettings lockstep;
  protocol::Claim claim;  // of terms, for this replica; empty: no arbiter
};

// How a backup's life ended.
struct BackupEnd {
  std::optional<Promotion> promotion = std::nullopt;  // it is to become the machine
  bool failed = false;  // not promoted, and not because primary or operator said goodbye
  bool fenced = false;  // because another replica leads the machine
  std::string reason = {};
};

struct BackupStatus {
  std::string state;      // waiting or joining, then as protocol::BackupReplica names it
  SessionStatus session;  // of the primary at hand, or the last one
};

class Backup {
 public:
  // Listens, if asked to. Throws UsageError when the address cannot be bound. `key` outlives this and the Promotion.
  Backup(BackupOptions options, const protocol::session::SecretKey& key);
  ~Backup();

  [[nodiscard]] std::uint16_t port() const;  // 0: it does not listen
  // Waits for a primary, or tries to join one until it can; and again when that leaves before anything here was touched.
  BackupEnd run(vmm::Backends& backends);
  // Any thread.
  [[nodiscard]] BackupStatus status() const;
  // Any thread: an orderly end. Without effect once run() has returned.
  void stop();

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace pollux::backup
