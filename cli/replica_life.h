// A replica's life in this process: it leads a machine or follows one, and may do either again. A backup leads when it is
// promoted; a primary follows (--rejoin) when another replica leads its machine, by a handover or because it was fenced.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "backup/backup.h"
#include "cli/signals.h"
#include "cli/stop_switch.h"
#include "control/desk.h"
#include "control/server.h"
#include "primary/primary.h"

namespace CLI {
class App;
}

namespace pollux::cli {

// Of `primary` and `backup` alike.
class LifeOptions {
 public:
  void add_to(CLI::App& app);
  // Throw UsageError naming the option.
  [[nodiscard]] std::vector<backup::JoinPoint> rejoin(const std::vector<protocol::session::PublicKey>& keys) const;
  [[nodiscard]] std::unique_ptr<control::Server> open_control(control::Desk& desk) const;  // null: none

 private:
  std::string control_path_;
  std::vector<std::string> rejoin_;
};

struct LifePlan {
  // What it is as a primary after a promotion; listener and succession come with that.
  primary::PrimaryOptions as_primary;
  // What it is as a backup after another replica took the lead; `join` are the points of --rejoin, none: it ends.
  backup::BackupOptions as_backup;
  std::string timeline_path;  // of each failover
};

class ReplicaLife {
 public:
  // All outlive it.
  ReplicaLife(LifePlan plan, const protocol::session::SecretKey& key, vmm::Backends& backends, StopSwitch& stops,
              control::Desk& desk);

  // Begins as a primary or as a backup; returns the process's exit code when all is over.
  int lead(primary::PrimaryOptions options, const primary::Primary::MakeMachine& make_machine,
           const SignalWatcher& signals);
  int follow(std::unique_ptr<backup::Backup> backup, const SignalWatcher& signals);

 private:
  // Nothing: another replica leads, and this one may follow it.
  using Ended = std::optional<int>;

  Ended run_primary(primary::PrimaryOptions options, const primary::Primary::MakeMachine& make_machine,
                    const SignalWatcher& signals);
  Ended run_promoted(backup::Promotion promotion, const SignalWatcher& signals);
  Ended run_backup(backup::Backup& backup, const SignalWatcher& signals);
  int follow_others(const SignalWatcher& signals);
  [[nodiscard]] bool may_rejoin() { return !plan_.as_backup.join.empty() && !stops_.stopped(); }

  const LifePlan plan_;
  const protocol::session::SecretKey& key_;
  vmm::Backends& backends_;
  StopSwitch& stops_;
  control::Desk& desk_;
};

}  // namespace pollux::cli
