#include "control/desk.h"

#include <mutex>

#include "base/error.h"

namespace pollux::control {

namespace {
const Status kBetweenRoles{.role = "none", .state = "between two roles"};
}  // namespace

void Desk::set(Controllable* replica) {
  const std::unique_lock lock(mutex_);
  replica_ = replica;
}

std::string Desk::answer(const Request& request) {
  const std::shared_lock lock(mutex_);
  if (replica_ == nullptr) {
    if (request.command == Command::kStatus) return ok_answer("status", to_json(kBetweenRoles));
    return error_answer("this process is between two roles: ask again");
  }
  try {
    switch (request.command) {
      case Command::kStatus: return ok_answer("status", to_json(replica_->status()));
      case Command::kStats: return ok_answer("stats", replica_->statistics());
      default: return done_answer(replica_->carry_out(request));
    }
  } catch (const Error& error) {
    return error_answer(error.what());
  }
}

Status Desk::watched() {
  const std::shared_lock lock(mutex_);
  return replica_ == nullptr ? kBetweenRoles : without_progress(replica_->status());
}

bool Desk::between_roles() {
  const std::shared_lock lock(mutex_);
  return replica_ == nullptr;
}

}  // namespace pollux::control
