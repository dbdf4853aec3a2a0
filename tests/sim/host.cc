#include "host.h"

#include <algorithm>
#include <utility>

#include "world.h"

namespace pollux::sim {

using namespace std::chrono_literals;
using protocol::TimePoint;

void Host::handle(const Event& event) {
  if (!alive_) return;
  if (paused_) {
    deferred_.push_back(event);
    return;
  }
  switch (event.kind) {
    case EventKind::kTick:
      if (!tick_at_ || *tick_at_ != event.at) return;  // another was armed meanwhile
      tick_at_.reset();
      if (const auto deadline = next_deadline(); deadline && *deadline <= local_now()) tick();
      break;
    case EventKind::kEpoch: on_epoch(); break;
    case EventKind::kLead: return on_lead();  // another object is this replica from here on
    case EventKind::kSyncStep: on_sync_step(event.value); break;
    case EventKind::kExamined: on_examined(event.value); break;
    case EventKind::kDisk: {
      if (disk_.fails) {
        world_.seen().disk_failed = true;
        return on_disk_failure();
      }
      const Disk::Job job = disk_.jobs.front();
      disk_.jobs.pop_front();
      if (job.durable) disk_.durable = std::max(disk_.durable, job.epoch);
      if (!disk_.jobs.empty()) start_disk();
      on_disk(job);
      break;
    }
    case EventKind::kClaimAnswer:
      on_claim_answer({event.value}, static_cast<protocol::Verdict>(event.value2));
      break;
    default: break;
  }
  rearm();
}

void Host::pause() {
  if (paused_) return;
  paused_ = true;
  paused_at_ = world_.now();
}

// As a process that wakes: what its threads had under way goes on, what arrived is read, and it notices the
// gap.
void Host::resume() {
  if (!paused_) return;
  paused_ = false;
  if (!alive_) return;
  const std::vector<Event> deferred = std::exchange(deferred_, {});
  tick_at_.reset();
  if (world_.now() - paused_at_ > world_.timing().silence_timeout / 2) on_stall();
  const bool arrivals_first = world_.random().one_in(2);
  if (arrivals_first) receive_all();
  for (const Event& event : deferred) handle(event);  // but for the tick, which comes last
  if (!arrivals_first) receive_all();
  if (!alive_) return;
  tick();
  rearm();
}

void Host::crash() {
  alive_ = false;
  paused_ = false;
  deferred_.clear();
}

TimePoint Host::local_now() const {
  const auto elapsed = world_.now().count();
  return TimePoint(1h + std::chrono::nanoseconds(elapsed + elapsed / 1'000'000 * drift_ppm_));
}

void Host::rearm() {
  if (!runs()) return;
  const auto deadline = next_deadline();
  if (!deadline) return;
  const std::int64_t local = std::max<std::int64_t>((*deadline - local_now()).count(), 0);
  // A little late by the own clock, never early.
  const Time at = world_.now() + Time(local * 1'000'000 / (1'000'000 + drift_ppm_)) + 5us;
  if (tick_at_ && *tick_at_ <= at) return;
  tick_at_ = at;
  world_.schedule(at, EventKind::kTick, id_);
}

void Host::schedule_own(Time in, EventKind kind, std::uint64_t value) {
  world_.schedule(world_.now() + Time(in.count() * 1'000'000 / (1'000'000 + drift_ppm_)), kind, id_, value);
}

void Host::disk_job(Disk::Job job) {
  disk_.jobs.push_back(job);
  if (disk_.jobs.size() == 1) start_disk();
}

void Host::start_disk() {
  Time takes =
      disk_.jobs.front().durable ? world_.random().between(100us, 8ms) : world_.random().between(5us, 500us);
  if (disk_.slow) takes *= 40;
  world_.schedule(world_.now() + takes, EventKind::kDisk, id_);
}

void Host::release_ready() {
  while (!releasing_.empty() && releasing_.front().needs_durable <= disk_.durable) {
    world_.checker().released(*this, releasing_.front());
    released_ += releasing_.front().to - releasing_.front().from;
    releasing_.pop_front();
  }
}

}  // namespace pollux::sim
