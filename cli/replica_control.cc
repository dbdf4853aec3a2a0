#include "cli/replica_control.h"

#include <fmt/format.h>

#include "base/error.h"

namespace pollux::cli {

using control::Command;

control::Status PrimaryControl::status() {
  const std::optional<primary::PrimaryStatus> running = primary_.status();
  if (!running) return {.role = "primary", .state = "starting or ended"};
  const primary::PrimaryStatus& now = *running;
  control::Status status{.role = "primary",
                         .state = "leading",
                         .vm = to_string(now.vm),
                         .term = now.replica.term.value,
                         .epoch = now.replica.closed.value,
                         .committed = now.replica.committed.value,
                         .protection = now.protection,
                         .guest = now.guest,
                         .claiming = now.replica.claiming};
  for (const auto& backup : now.replica.backups) {
    control::BackupStatus& one = status.backups.emplace_back();
    one.id = backup.id.value;
    one.address = backup.address;
    one.state = to_string(backup.state);
    if (backup.acknowledged) one.acknowledged = backup.acknowledged->value;
    one.unacknowledged_epochs = backup.unacknowledged;
  }
  return status;
}

std::string PrimaryControl::statistics() { return primary_.statistics().json(); }

std::string PrimaryControl::carry_out(const control::Request& request) {
  switch (request.command) {
    case Command::kPause: primary_.pause(); return "the guest stands still";
    case Command::kResume: primary_.resume(); return "the guest runs";
    case Command::kStop: stop_(); return "the machine ends";
    case Command::kAddBackup:
      return fmt::format("backup {} is {}, and is brought in sync",
                         to_string(primary_.add_backup(protocol::parse_address(request.address))), request.address);
    case Command::kDropBackup:
      primary_.drop_backup({*request.backup});
      return fmt::format("backup {} is given up", *request.backup);
    case Command::kSwitchover: {
      const auto to = request.backup ? std::optional(protocol::BackupId{*request.backup}) : std::nullopt;
      const auto done = primary_.switch_over(to);
      const std::chrono::duration<double, std::milli> time = done.stood_still;
      return fmt::format("backup {} leads the machine now; the guest stood still for {:.1f} ms until it had won the term",
                         to_string(done.to), time.count());
    }
    case Command::kStatus:
    case Command::kStats: break;
  }
  throw Error("no order");
}

control::Status BackupControl::status() {
  const backup::BackupStatus now = backup_.status();
  const bool known = now.session.vm != protocol::VmId{};
  return {.role = "backup",
          .state = now.state,
          .vm = known ? to_string(now.session.vm) : "",
          .term = now.session.term.value,
          .epoch = now.session.whole.value,
          .committed = now.session.acknowledged.value,
          .protection = {},
          .guest = "passive",
          .claiming = now.session.state == protocol::BackupReplica::State::kClaiming};
}

std::string BackupControl::statistics() {
  const backup::SessionStatus session = backup_.status().session;
  return fmt::format(R"({{"epoch_whole":{},"epoch_acknowledged":{},"staged_bytes":{}}})", session.whole.value,
                     session.acknowledged.value, session.staged_bytes);
}

std::string BackupControl::carry_out(const control::Request& request) {
  if (request.command != Command::kStop) {
    throw Error(fmt::format("this is a backup: {} is for the primary", name_of(request.command)));
  }
  stop_();
  return "the backup ends";
}

}  // namespace pollux::cli
