// A backup: waits for its primary, keeps an image of the primary's machine, and becomes it when the primary dies.
#pragma once

#include <chrono>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "protocol/claim.h"
#include "protocol/link/link.h"
#include "vmm/machine/machine.h"

namespace pollux::backup {

struct BackupOptions {
  protocol::Address listen;
  protocol::session::PublicKey primary_key;
  std::chrono::milliseconds heartbeat_interval{100};
  std::chrono::milliseconds silence_timeout{1000};
  std::uint64_t staging_bytes = std::uint64_t{1} << 30;
  protocol::Claim claim;  // of terms, for this replica; empty: no arbiter
  std::string timeline_path;  // the failover's timeline as JSON; empty: none
  // Called on run()'s thread once the promoted machine runs; may be empty.
  std::function<void(vmm::Machine&)> on_promoted;
};

// How a backup's life ended.
struct BackupEnd {
  // Set when it was promoted: how the machine ended here.
  std::optional<vmm::MachineExit> machine = std::nullopt;
  bool failed = false;  // not promoted, and not because primary or operator said goodbye
  std::string reason = {};
};

class Backup {
 public:
  // Listens. Throws UsageError when the address cannot be bound.
  Backup(BackupOptions options, const protocol::session::SecretKey& key);
  ~Backup();

  [[nodiscard]] std::uint16_t port() const;
  // Waits for a primary, and for another when that leaves before anything here was touched.
  BackupEnd run(vmm::Backends& backends);
  // Any thread: an orderly end, of the backup or of the machine it became.
  void stop();

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace pollux::backup
