#include "primary/replica_driver.h"

#include <spdlog/spdlog.h>

#include "base/error.h"
#include "primary/parcels.h"

namespace pollux::primary {

namespace event = protocol::primary;
using protocol::BackupId;
using protocol::TimePoint;

namespace {
TimePoint now() { return std::chrono::steady_clock::now(); }
}  // namespace

ReplicaDriver::ReplicaDriver(protocol::PrimaryConfig config, std::vector<Shipper*> shippers, EngineMailbox& mailbox,
                             Statistics& statistics, Callbacks callbacks, protocol::Claim claim)
    : silence_timeout_(config.timing.silence_timeout),
      vm_(config.hello.vm),
      replica_(std::move(config)),
      shippers_(std::move(shippers)),
      mailbox_(mailbox),
      statistics_(statistics),
      callbacks_(std::move(callbacks)),
      claim_(std::move(claim)),
      down_reported_(shippers_.size()) {}

ReplicaDriver::~ReplicaDriver() { stop(); }

void ReplicaDriver::start() {
  for (std::uint32_t i = 0; i < shippers_.size(); ++i) {
    if (shippers_[i] == nullptr) {
      down_reported_[i] = true;
      post(event::LinkDown{{i}, "never connected"});
      continue;
    }
    post(event::LinkUp{{i}});
    shippers_[i]->link().set_activity_callback([this] {
      const std::lock_guard lock(mutex_);
      activity_ = true;
      changed_.notify_all();
    });
  }
  thread_ = std::thread([this] { run(); });
}

void ReplicaDriver::post(event::Event event) {
  const std::lock_guard lock(mutex_);
  if (halted_) return;
  POLLUX_ASSERT(events_.size() < kMaxQueuedEvents);
  events_.push_back(std::move(event));
  ++posted_;
  changed_.notify_all();
}

void ReplicaDriver::post_and_wait(event::Event event) {
  post(std::move(event));
  std::unique_lock lock(mutex_);
  const std::uint64_t mine = posted_;  // or a later one: at least as good
  changed_.wait(lock, [&] { return halted_ || stepped_ >= mine; });
}

void ReplicaDriver::halt() {
  const std::lock_guard lock(mutex_);
  halted_ = stopping_ = true;
  events_.clear();
  changed_.notify_all();
}

void ReplicaDriver::stop() {
  if (!thread_.joinable()) return;
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
    changed_.notify_all();
  }
  thread_.join();
  if (claimant_.joinable()) claimant_.join();
  for (Shipper* shipper : shippers_) {
    if (shipper != nullptr) shipper->link().set_activity_callback([] {});
  }
}

void ReplicaDriver::run() {
  TimePoint last_turn = now();
  for (;;) {
    bool activity = false;
    {
      std::unique_lock lock(mutex_);
      const auto ready = [&] { return stopping_ || activity_ || !events_.empty(); };
      if (const auto deadline = replica_.next_deadline()) {
        changed_.wait_until(lock, *deadline, ready);
      } else {
        changed_.wait(lock, ready);
      }
      if (stopping_ && events_.empty()) return;
      activity = std::exchange(activity_, false);
    }
    // A backup is silent only for one who listens: after a stall of our own the time counts afresh.
    const TimePoint turn = now();
    const bool stalled = turn - last_turn > silence_timeout_ / 2;
    last_turn = turn;
    step_posted_events();
    for (std::uint32_t i = 0; i < shippers_.size(); ++i) {
      if (shippers_[i] == nullptr) continue;
      if (activity) receive_from({i});
      const TimePoint heard = stalled ? turn : shippers_[i]->link().last_received();
      handle(replica_.step(event::Heard{{i}, heard}, now()));
    }
    handle(replica_.step(event::Tick{}, now()));
  }
}

void ReplicaDriver::step_posted_events() {
  std::deque<event::Event> events;
  {
    const std::lock_guard lock(mutex_);
    events.swap(events_);
  }
  for (const event::Event& event : events) handle(replica_.step(event, now()));
  const std::lock_guard lock(mutex_);
  stepped_ += events.size();
  changed_.notify_all();
}

void ReplicaDriver::receive_from(BackupId backup) {
  protocol::Link& link = shippers_[backup.value]->link();
  // Asked before: what arrived until it went down is received below, and comes before the loss.
  const bool up = link.is_up();
  while (auto received = link.receive(std::chrono::nanoseconds(0))) {
    // What this message answers was posted before it was sent: the state machine must have seen that first.
    step_posted_events();
    handle(replica_.receive(backup, received->message, now()));
    if (const auto* digests = std::get_if<protocol::DiskDigests>(&received->message)) {
      if (!mailbox_.is_dropped(backup)) mailbox_.digests({backup, *digests, std::move(received->body)});
    }
  }
  if (!up && !down_reported_[backup.value]) {
    down_reported_[backup.value] = true;
    handle(replica_.step(event::LinkDown{backup, link.down_reason()}, now()));
  }
}

void ReplicaDriver::handle(std::vector<event::Effect> effects) {
  {
    const std::lock_guard lock(mutex_);
    if (halted_) return;
  }
  for (const event::Effect& effect : effects) {
    std::visit([this](const auto& one) { carry_out(one); }, effect);
  }
}

void ReplicaDriver::carry_out(const event::Send& effect) {
  Shipper* shipper = shippers_.at(effect.backup.value);
  if (shipper != nullptr) shipper->push(message_parcel(effect.message));
}

void ReplicaDriver::carry_out(const event::StartFullSync& effect) {
  spdlog::info("backup {}: full sync begins", to_string(effect.backup));
  mailbox_.start_full_sync(effect.backup);
}

void ReplicaDriver::carry_out(const event::Protected& effect) {
  spdlog::info("backup {}: protecting: from here on it can take over", to_string(effect.backup));
  protecting_.insert(effect.backup);
  statistics_.set_backups(protecting_.size());
}

// Once protection is lost, an epoch without a flush must not let out those before it either: only the engine does, and
// makes the images durable first.
void ReplicaDriver::carry_out(const event::Committed& effect) {
  unprotected_ |= effect.durable_first || replica_.unprotected();
  callbacks_.committed(effect.epoch, unprotected_);
}

void ReplicaDriver::carry_out(const event::DropBackup& effect) {
  spdlog::warn("backup {}: dropped: {}", to_string(effect.backup), effect.reason);
  Shipper* shipper = shippers_.at(effect.backup.value);
  if (shipper != nullptr) shipper->retire();
  mailbox_.dropped(effect.backup);
  protecting_.erase(effect.backup);
  statistics_.set_backups(protecting_.size());
}

void ReplicaDriver::carry_out(const event::Unprotected&) {
  unprotected_ = true;
  spdlog::warn("no backup is left: the guest goes on unprotected");
  mailbox_.unprotected();
}

// The answer comes as an event. Meanwhile the other backups must hear this host.
void ReplicaDriver::carry_out(const event::ClaimTerm& effect) {
  if (!claim_) return post(event::TermWon{effect.term});
  spdlog::warn("a backup is lost: claiming term {}; outputs are held until it is decided", effect.term.value);
  if (claimant_.joinable()) claimant_.join();  // it has posted the answer to the claim before
  claimant_ = std::thread([this, term = effect.term] {
    switch (claim_(vm_, term)) {
      case protocol::Verdict::kWon: return post(event::TermWon{term});
      case protocol::Verdict::kLost: return post(event::TermLost{term});
      case protocol::Verdict::kUnreachable: return post(event::ArbiterUnreachable{});
    }
  });
}

void ReplicaDriver::carry_out(const event::Fenced& effect) {
  spdlog::critical("fenced: {}", effect.reason);
  callbacks_.fenced(effect.reason);
}

}  // namespace pollux::primary
