#include "backup/applier.h"

#include "base/error.h"
#include "base/thread_name.h"

namespace pollux::backup {

Applier::Applier(ReplicaImage& image, LockstepReplica* lockstep, std::function<void(protocol::backup::Event, bool more)> on_done,
                 std::function<void(DivergedEpoch)> on_diverged, std::function<void(std::string)> on_failed)
    : image_(image),
      lockstep_(lockstep),
      on_done_(std::move(on_done)),
      on_diverged_(std::move(on_diverged)),
      on_failed_(std::move(on_failed)),
      thread_([this] { run(); }) {}

Applier::~Applier() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  changed_.notify_all();
  if (lockstep_ != nullptr) lockstep_->interrupt();
  thread_.join();
}

void Applier::apply(EpochRecord record) { add(std::move(record)); }
void Applier::make_durable(protocol::EpochId epoch) { add(Durable{epoch}); }
void Applier::make_durable(protocol::SyncMark mark) { add(mark); }

void Applier::add(Job job) {
  const std::lock_guard lock(mutex_);
  jobs_.push_back(std::move(job));
  changed_.notify_all();
}

bool Applier::drain() {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [&] { return failed_ || (jobs_.empty() && !busy_); });
  return !failed_;
}

void Applier::run() {
  name_this_thread("applier");
  std::unique_lock lock(mutex_);
  for (;;) {
    changed_.wait(lock, [&] { return stopping_ || !jobs_.empty(); });
    if (stopping_ || failed_) return;
    Job job = std::move(jobs_.front());
    jobs_.pop_front();
    const bool more = !jobs_.empty();
    busy_ = true;
    lock.unlock();
    try {
      perform(std::move(job), more);
      lock.lock();
    } catch (const std::exception& error) {
      on_failed_(error.what());
      lock.lock();
      failed_ = true;
    }
    busy_ = false;
    changed_.notify_all();
  }
}

void Applier::perform(Job job, bool more) {
  if (auto* record = std::get_if<EpochRecord>(&job)) return apply_now(std::move(*record), more);
  const bool of_forgotten = lockstep_ != nullptr && !lockstep_->executes() && std::holds_alternative<Durable>(job);
  if (of_forgotten) return;
  image_.make_durable();
  if (const auto* mark = std::get_if<protocol::SyncMark>(&job)) {
    on_done_(protocol::backup::SyncDurable{*mark}, more);
  } else {
    on_done_(protocol::backup::EpochDurable{std::get<Durable>(job).epoch}, more);
  }
}

void Applier::apply_now(EpochRecord record, bool more) {
  const protocol::EpochId epoch = record.epoch;
  std::optional<DivergedEpoch> diverged;
  if (lockstep_ == nullptr) {
    image_.apply(std::move(record));
  } else if (record.inputs.empty() || lockstep_->executes()) {
    diverged = lockstep_->apply(std::move(record));
  } else {
    return;
  }
  if (diverged) return on_diverged_(std::move(*diverged));
  on_done_(protocol::backup::EpochApplied{epoch}, more);
}

}  // namespace pollux::backup
