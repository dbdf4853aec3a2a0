#include "chaos/role_tracker.h"

namespace pollux::chaos {
namespace {

RoleSpan::Role role_of(const ReplicaStatus& status) {
  if (status.leads()) return status.is_protected() ? RoleSpan::Role::kProtected : RoleSpan::Role::kUnprotected;
  if (status.state == "syncing") return RoleSpan::Role::kSyncing;
  if (status.state == "protecting" || status.state == "claiming") return RoleSpan::Role::kBackup;
  return RoleSpan::Role::kStarting;
}

}  // namespace

std::string name_of(RoleSpan::Role role) {
  switch (role) {
    case RoleSpan::Role::kDown: return "down";
    case RoleSpan::Role::kStarting: return "starting";
    case RoleSpan::Role::kSyncing: return "syncing";
    case RoleSpan::Role::kBackup: return "backup";
    case RoleSpan::Role::kUnprotected: return "primary, unprotected";
    case RoleSpan::Role::kProtected: return "primary, protected";
  }
  return "?";
}

void RoleTracker::note(std::size_t host, RoleSpan::Role role, std::uint64_t term, Moment at) {
  const std::lock_guard lock(mutex_);
  RoleSpan& now = current_.at(host);
  if (now.role == role && now.term == term) return;
  now.to = at;
  if (past_.size() < kMaxSpans && now.to > now.from) past_.push_back(now);
  now = {host, role, term, at, at};
}

void RoleTracker::note(std::size_t host, const ReplicaStatus& status, Moment at) {
  note(host, role_of(status), status.term, at);
  const std::lock_guard lock(mutex_);
  if (status.leads() && samples_.size() < kMaxSamples) samples_.push_back({at, host, status.epoch});
}

std::vector<RoleSpan> RoleTracker::spans(Moment at) const {
  const std::lock_guard lock(mutex_);
  std::vector<RoleSpan> all = past_;
  for (RoleSpan span : current_) {
    span.to = at;
    all.push_back(span);
  }
  return all;
}

std::vector<EpochSample> RoleTracker::samples() const {
  const std::lock_guard lock(mutex_);
  return samples_;
}

}  // namespace pollux::chaos
