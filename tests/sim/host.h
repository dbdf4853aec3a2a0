// What the simulated hosts of a primary and of a backup have in common: a clock of their own, a disk, a
// guest, and outputs on their way to the client.
#pragma once

#include <deque>
#include <optional>
#include <vector>

#include "event_queue.h"
#include "guest_model.h"
#include "network.h"
#include "protocol/types.h"
#include "protocol/verdict.h"

namespace pollux::sim {

class Checker;
class World;

// Does one job after the other.
class Disk {
 public:
  struct Job {
    protocol::EpochId epoch;
    bool durable = false;  // make durable what was applied; else apply
  };
  std::deque<Job> jobs;
  protocol::EpochId durable{};
  bool slow = false;
  bool fails = false;  // every job from here on
};

// As which a claim names a replica.
inline protocol::ReplicaId replica_id(HostId host) {
  protocol::ReplicaId replica;
  replica.value.front() = std::byte{host.value};
  return replica;
}
inline HostId host_of(const protocol::ReplicaId& replica) { return {static_cast<std::uint8_t>(replica.value.front())}; }

class Host {
 public:
  // On a site, whose clock drifts.
  Host(World& world, HostId id, std::size_t site, std::int64_t drift_ppm)
      : world_(world), id_(id), site_(site), drift_ppm_(drift_ppm) {}
  Host(const Host&) = delete;
  Host& operator=(const Host&) = delete;
  virtual ~Host() = default;

  // Events; a paused host gets them when it is resumed.
  void handle(const Event& event);
  // Something arrived, or there is room again.
  virtual void receive_all() = 0;

  void pause();
  void resume();
  void crash();

  [[nodiscard]] HostId id() const { return id_; }
  [[nodiscard]] std::size_t site() const { return site_; }
  // It leads nothing and waits for nothing.
  [[nodiscard]] virtual bool is_over() const = 0;
  [[nodiscard]] virtual bool fenced() const = 0;
  // Those it takes part in, and in which direction it sends.
  [[nodiscard]] virtual std::vector<std::size_t> links() const = 0;
  [[nodiscard]] virtual Direction sends() const = 0;
  [[nodiscard]] bool alive() const { return alive_; }
  [[nodiscard]] bool paused() const { return paused_; }
  [[nodiscard]] bool runs() const { return alive_ && !paused_; }
  [[nodiscard]] bool stopped_by_operator() const { return stopped_by_operator_; }
  [[nodiscard]] const Guest& guest() const { return guest_; }
  [[nodiscard]] protocol::EpochId durable() const { return disk_.durable; }
  [[nodiscard]] std::uint64_t released() const { return released_; }
  [[nodiscard]] std::int64_t drift_ppm() const { return drift_ppm_; }
  [[nodiscard]] const Disk& disk() const { return disk_; }
  void set_slow_disk(bool slow) { disk_.slow = slow; }
  void fail_disk() { disk_.fails = true; }
  [[nodiscard]] protocol::TimePoint local_now() const;

  [[nodiscard]] virtual protocol::Term leads_in() const = 0;
  virtual void operator_stop() = 0;
  // What must hold of it between two steps.
  virtual void check(Checker& checker) const = 0;

 protected:
  virtual void tick() = 0;
  virtual void on_epoch() {}
  virtual void on_sync_step(std::size_t) {}
  virtual void on_examined(std::size_t) {}
  virtual void on_lead() {}
  virtual void on_disk(Disk::Job job) = 0;
  virtual void on_disk_failure() = 0;
  virtual void on_claim_answer(protocol::Term term, protocol::Verdict verdict) = 0;
  virtual void on_stall() = 0;  // it was paused for long: whoever is silent gets another chance
  [[nodiscard]] virtual std::optional<protocol::TimePoint> next_deadline() const = 0;

  void rearm();                                                         // the tick for next_deadline()
  void schedule_own(Time in, EventKind kind, std::uint64_t value = 0);  // by the own clock
  void disk_job(Disk::Job job);
  void release_ready();

  World& world_;
  const HostId id_;
  const std::size_t site_;
  const std::int64_t drift_ppm_;
  bool alive_ = true;
  bool paused_ = false;
  bool stopped_by_operator_ = false;
  Guest guest_;
  Disk disk_;
  std::deque<Outputs> releasing_;  // committed, on their way out in order

 private:
  void start_disk();

  std::uint64_t released_ = 0;
  Time paused_at_{};
  std::vector<Event> deferred_;
  std::optional<Time> tick_at_;
};

}  // namespace pollux::sim
