// What an operator may do to the replica of this process, as the control socket knows it.
#pragma once

#include <functional>
#include <string>

#include "backup/backup.h"
#include "control/desk.h"
#include "primary/primary.h"

namespace pollux::cli {

class PrimaryControl final : public control::Controllable {
 public:
  PrimaryControl(primary::Primary& primary, std::function<void()> stop) : primary_(primary), stop_(std::move(stop)) {}

  [[nodiscard]] control::Status status() override;
  [[nodiscard]] std::string statistics() override;
  [[nodiscard]] std::string carry_out(const control::Request& request) override;

 private:
  primary::Primary& primary_;
  const std::function<void()> stop_;
};

class BackupControl final : public control::Controllable {
 public:
  BackupControl(backup::Backup& backup, std::function<void()> stop) : backup_(backup), stop_(std::move(stop)) {}

  [[nodiscard]] control::Status status() override;
  [[nodiscard]] std::string statistics() override;
  [[nodiscard]] std::string carry_out(const control::Request& request) override;

 private:
  backup::Backup& backup_;
  const std::function<void()> stop_;
};

}  // namespace pollux::cli
