#include "primary/engine_mailbox.h"

#include <algorithm>
#include <iterator>
#include <utility>

namespace pollux::primary {

using protocol::BackupId;
using protocol::EpochId;

void EngineMailbox::start_full_sync(std::vector<SyncTarget> backups) {
  const std::lock_guard lock(mutex_);
  std::ranges::move(backups, std::back_inserter(sync_requests_));
  changed_.notify_all();
}

void EngineMailbox::digests(DigestAnswer answer) {
  const std::lock_guard lock(mutex_);
  answers_.insert_or_assign(answer.backup, std::move(answer));
  changed_.notify_all();
}

void EngineMailbox::reached(BackupId backup, protocol::SyncMark mark) {
  const std::lock_guard lock(mutex_);
  marks_.insert_or_assign(backup, mark);
  changed_.notify_all();
}

void EngineMailbox::committed(EpochId epoch) {
  const std::lock_guard lock(mutex_);
  committed_ = epoch;
  changed_.notify_all();
}

void EngineMailbox::dropped(BackupId backup) {
  const std::lock_guard lock(mutex_);
  dropped_.insert(backup);
  answers_.erase(backup);
  marks_.erase(backup);
  std::erase_if(sync_requests_, [&](const SyncTarget& target) { return target.backup == backup; });
  heals_.erase(backup);
  changed_.notify_all();
}

void EngineMailbox::unprotected() {
  const std::lock_guard lock(mutex_);
  unprotected_ = true;
  tell_urgent();
}

void EngineMailbox::replicating() {
  const std::lock_guard lock(mutex_);
  unprotected_ = false;
}

void EngineMailbox::handover_ended(HandoverOutcome outcome) {
  const std::lock_guard lock(mutex_);
  outcome_ = std::move(outcome);
  if (const auto since = std::exchange(handover_since_, {})) outcome_->stood_still = std::chrono::steady_clock::now() - *since;
  handover_.reset();
  changed_.notify_all();
}

void EngineMailbox::set_claiming(bool claiming) {
  const std::lock_guard lock(mutex_);
  if (std::exchange(claiming_, claiming) == claiming) return;  // told after each message: nobody is woken for nothing
  changed_.notify_all();
}

void EngineMailbox::set_undecided(bool undecided) {
  const std::lock_guard lock(mutex_);
  undecided_ = undecided;
  changed_.notify_all();
}

void EngineMailbox::set_held(bool held) {
  const std::lock_guard lock(mutex_);
  held_ = held;
  tell_urgent();
}

bool EngineMailbox::request_handover(BackupId to) {
  const std::lock_guard lock(mutex_);
  if (handover_ || closed_) return false;
  handover_ = to;
  outcome_.reset();
  tell_urgent();
  return true;
}

void EngineMailbox::stop() {
  const std::lock_guard lock(mutex_);
  stopping_ = true;
  tell_urgent();
}

void EngineMailbox::fail() {
  const std::lock_guard lock(mutex_);
  stopping_ = failed_ = true;
  tell_urgent();
}

bool EngineMailbox::failed() const {
  const std::lock_guard lock(mutex_);
  return failed_;
}

bool EngineMailbox::stopping() const {
  const std::lock_guard lock(mutex_);
  return stopping_;
}

bool EngineMailbox::is_claiming() const {
  const std::lock_guard lock(mutex_);
  return claiming_;
}

bool EngineMailbox::is_undecided() const {
  const std::lock_guard lock(mutex_);
  return undecided_;
}

bool EngineMailbox::is_held() const {
  const std::lock_guard lock(mutex_);
  return held_;
}

std::optional<BackupId> EngineMailbox::requested_handover() const {
  const std::lock_guard lock(mutex_);
  return handover_;
}

std::optional<HandoverOutcome> EngineMailbox::handover_outcome() const {
  const std::lock_guard lock(mutex_);
  return outcome_;
}

bool EngineMailbox::is_unprotected() const {
  const std::lock_guard lock(mutex_);
  return unprotected_;
}

bool EngineMailbox::is_dropped(BackupId backup) const {
  const std::lock_guard lock(mutex_);
  return dropped_.contains(backup);
}

EpochId EngineMailbox::committed() const {
  const std::lock_guard lock(mutex_);
  return committed_;
}

std::vector<SyncTarget> EngineMailbox::take_sync_requests() {
  const std::lock_guard lock(mutex_);
  if (!sync_requests_.empty()) {
    dropped_.erase(dropped_.begin(), dropped_.lower_bound(sync_requests_.front().backup));
  }
  return std::exchange(sync_requests_, {});
}

std::optional<DigestAnswer> EngineMailbox::wait_for_digests(BackupId backup) {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [&] { return stopping_ || dropped_.contains(backup) || answers_.contains(backup); });
  if (stopping_ || dropped_.contains(backup)) return std::nullopt;
  return std::move(answers_.extract(backup).mapped());
}

bool EngineMailbox::wait_for_mark(BackupId backup, protocol::SyncMark mark) {
  std::unique_lock lock(mutex_);
  const auto reached = [&] {
    const auto last = marks_.find(backup);
    return last != marks_.end() && last->second == mark;
  };
  changed_.wait(lock, [&] { return stopping_ || dropped_.contains(backup) || reached(); });
  return !stopping_ && reached();
}

bool EngineMailbox::wait_for_commit(EpochId epoch, std::chrono::nanoseconds timeout) {
  std::unique_lock lock(mutex_);
  changed_.wait_for(lock, timeout, [&] { return unprotected_ || failed_ || committed_ >= epoch; });
  return committed_ >= epoch;
}

void EngineMailbox::executed(EpochId epoch) {
  const std::lock_guard lock(mutex_);
  executed_ = epoch;
  changed_.notify_all();
}

void EngineMailbox::heal(HealRequest request) {
  const std::lock_guard lock(mutex_);
  heals_.insert_or_assign(request.backup, std::move(request));
  tell_urgent();
}

void EngineMailbox::forget_heal(BackupId backup) {
  const std::lock_guard lock(mutex_);
  heals_.erase(backup);
}

bool EngineMailbox::has_progressed(EpochId committed, EpochId executed) const {
  const std::lock_guard lock(mutex_);
  return committed_ >= committed && executed_ >= executed;
}

bool EngineMailbox::wait_for_progress(EpochId committed, EpochId executed, std::chrono::nanoseconds timeout) {
  std::unique_lock lock(mutex_);
  const auto reached = [&] { return committed_ >= committed && executed_ >= executed; };
  changed_.wait_for(lock, timeout, [&] {
    return reached() || unprotected_ || stopping_ || handover_ || held_ || !heals_.empty();
  });
  return reached();
}

EpochId EngineMailbox::executed() const {
  const std::lock_guard lock(mutex_);
  return executed_;
}

bool EngineMailbox::has_heals() const {
  const std::lock_guard lock(mutex_);
  return !heals_.empty();
}

std::vector<BackupId> EngineMailbox::heals() const {
  const std::lock_guard lock(mutex_);
  std::vector<BackupId> backups;
  for (const auto& [backup, request] : heals_) backups.push_back(backup);
  return backups;
}

std::vector<HealRequest> EngineMailbox::take_heals() {
  const std::lock_guard lock(mutex_);
  std::vector<HealRequest> requests;
  for (auto& [backup, request] : heals_) requests.push_back(std::move(request));
  heals_.clear();
  return requests;
}

// With the lock held.
void EngineMailbox::tell_urgent() {
  ++urgent_;
  urgent_changed_.notify_all();
  changed_.notify_all();
}

std::uint64_t EngineMailbox::urgent() const {
  const std::lock_guard lock(mutex_);
  return urgent_;
}

std::uint64_t EngineMailbox::wait_for_urgent(std::uint64_t seen, std::chrono::nanoseconds timeout,
                                             const std::stop_token& stop) {
  // Made before the lock is taken and gone after it is given back: it may be called right here.
  const std::stop_callback wake(stop, [this] {
    const std::lock_guard lock(mutex_);
    urgent_changed_.notify_all();
  });
  std::unique_lock lock(mutex_);
  urgent_changed_.wait_for(lock, timeout, [&] { return stop.stop_requested() || urgent_ > seen; });
  return urgent_;
}

void EngineMailbox::wait_for_news(std::chrono::nanoseconds timeout) {
  std::unique_lock lock(mutex_);
  changed_.wait_for(lock, timeout);
}

void EngineMailbox::set_standing(bool standing) {
  const std::lock_guard lock(mutex_);
  standing_ = standing;
  changed_.notify_all();
}

void EngineMailbox::handover_began(std::chrono::steady_clock::time_point since) {
  const std::lock_guard lock(mutex_);
  handover_since_ = since;
}

void EngineMailbox::close() {
  const std::lock_guard lock(mutex_);
  closed_ = true;
  changed_.notify_all();
}

bool EngineMailbox::wait_until_standing(bool standing, std::chrono::nanoseconds timeout) {
  std::unique_lock lock(mutex_);
  changed_.wait_for(lock, timeout, [&] { return closed_ || standing_ == standing; });
  return !closed_ && standing_ == standing;
}

std::optional<HandoverOutcome> EngineMailbox::wait_for_handover(std::chrono::nanoseconds timeout) {
  std::unique_lock lock(mutex_);
  changed_.wait_for(lock, timeout, [&] { return closed_ || outcome_.has_value(); });
  return outcome_;
}

}  // namespace pollux::primary
