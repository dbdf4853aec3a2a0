#include "primary/replica_driver.h"

#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include <algorithm>

#include "base/error.h"
#include "base/thread_name.h"
#include "primary/parcels.h"

namespace pollux::primary {

namespace event = protocol::primary;
using protocol::BackupId;
using protocol::TimePoint;

namespace {
TimePoint now() { return std::chrono::steady_clock::now(); }
// Where they begin, of the first few.
std::string addresses(const std::vector<protocol::PageNumber>& pages) {
  constexpr std::size_t kMostNamed = 8;
  if (pages.empty()) return "no page differs";
  std::string text = pages.size() == 1 ? "page at" : std::to_string(pages.size()) + " pages at";
  for (std::size_t i = 0; i < std::min(pages.size(), kMostNamed); ++i) {
    text += fmt::format(" {:#x}", pages[i].value << kPageShift);
  }
  return pages.size() > kMostNamed ? text + " ..." : text;
}

}  // namespace

ReplicaDriver::ReplicaDriver(protocol::PrimaryConfig config, std::vector<std::unique_ptr<protocol::Link>> links,
                             EngineMailbox& mailbox, Statistics& statistics, Callbacks callbacks,
                             protocol::Claim claim, const protocol::ReplicaId& self)
    : silence_timeout_(config.timing.silence_timeout),
      vm_(config.hello.vm),
      replica_(std::move(config)),
      mailbox_(mailbox),
      statistics_(statistics),
      callbacks_(std::move(callbacks)),
      claim_(std::move(claim)),
      self_(self) {
  for (std::uint32_t i = 0; i < links.size(); ++i) {
    if (links[i]) peers_.emplace(BackupId{i}, Peer{std::make_shared<Shipper>(std::move(links[i]))});
  }
}

// The links' threads call back until their callbacks are gone.
ReplicaDriver::~ReplicaDriver() {
  stop();
  for (const auto& [id, peer] : peers_) peer.shipper->link().set_activity_callback([] {});
}

void ReplicaDriver::start() {
  if (replica_.unprotected()) {
    unprotected_ = true;
    mailbox_.unprotected();
  }
  publish_status();
  for (BackupId id{0}; id < replica_.next_backup(); ++id.value) {
    const auto found = peers_.find(id);
    if (found == peers_.end()) {
      post(event::LinkDown{id, "never connected"});
      continue;
    }
    post(event::LinkUp{id});
    listen_to(*found->second.shipper);
  }
  thread_ = std::thread([this] { run(); });
}

void ReplicaDriver::post(event::Event event) {
  post_quietly(std::move(event));
  changed_.notify_all();
}

void ReplicaDriver::post_quietly(event::Event event) {
  const std::lock_guard lock(mutex_);
  if (halted_) return;
  POLLUX_ASSERT(events_.size() < kMaxQueuedEvents);
  events_.push_back(std::move(event));
  ++posted_;
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
  joining_.clear();
  for (const auto& [id, peer] : peers_) peer.shipper->abort();
  changed_.notify_all();
}

void ReplicaDriver::join(std::unique_ptr<protocol::Link> link, Joined joined) {
  const std::lock_guard lock(mutex_);
  if (stopping_) return;
  joining_.push_back({std::move(link), std::move(joined)});
  changed_.notify_all();
}

void ReplicaDriver::flush(std::chrono::milliseconds timeout) {
  for (const auto& [id, peer] : peers_) {
    peer.shipper->wait_until_sent(timeout);
    (void)peer.shipper->link().flush(timeout);
  }
  for (const auto& shipper : leaving_) shipper->wait_until_closed(timeout);
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
}

void ReplicaDriver::run() {
  name_this_thread("replica driver");
  TimePoint last_turn = now();
  for (;;) {
    bool activity = false;
    {
      std::unique_lock lock(mutex_);
      const auto ready = [&] { return stopping_ || activity_ || !events_.empty() || !joining_.empty(); };
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
    last_turn = turn_began_ = turn;
    if (stalled) commits_held_until_ = turn + silence_timeout_ / 2;
    step_posted_events();
    step_links(activity, stalled, turn);
    handle(replica_.step(event::Tick{}, now()));
    mailbox_.set_claiming(replica_.claiming());
    release_after_stall();
    admit_joiners();
    publish_status();
  }
}

// For whoever asks: the state machine itself is this thread's alone.
void ReplicaDriver::publish_status() {
  ReplicaStatus status{.term = replica_.term(),
                       .closed = replica_.closed(),
                       .committed = replica_.committed(),
                       .claiming = replica_.claiming()};
  std::uint64_t link_bytes = departed_bytes_;
  for (const auto& [id, peer] : peers_) {
    const protocol::Link& link = peer.shipper->link();
    const auto acknowledged = replica_.acknowledged(id);
    const std::uint64_t unacknowledged = acknowledged ? replica_.closed().value - acknowledged->value : 0;
    status.backups.push_back({id, link.peer_address(), replica_.state(id), acknowledged, unacknowledged});
    link_bytes += link.sent_bytes();
  }
  statistics_.set_link_bytes(link_bytes);
  const std::lock_guard lock(mutex_);
  status_ = std::move(status);
}

ReplicaStatus ReplicaDriver::status() const {
  const std::lock_guard lock(mutex_);
  return status_;
}

void ReplicaDriver::step_links(bool activity, bool stalled, TimePoint turn) {
  // Any step may drop any of them.
  for (auto at = peers_.begin(); at != peers_.end();) {
    const BackupId id = at->first;
    const std::shared_ptr<Shipper> shipper = at->second.shipper;
    if (activity) receive_from(id);
    const TimePoint heard = stalled ? turn : shipper->link().last_received();
    handle(replica_.step(event::Heard{id, heard}, now()));
    at = peers_.upper_bound(id);
  }
}

void ReplicaDriver::admit_joiners() {
  std::deque<Joiner> joining;
  {
    const std::lock_guard lock(mutex_);
    joining.swap(joining_);
  }
  for (Joiner& joiner : joining) admit(std::move(joiner));
}

void ReplicaDriver::admit(Joiner joiner) {
  if (!joiner.link->is_up()) return;  // it did not wait
  if (const std::string why = replica_.why_no_joiner(); !why.empty()) return turn_away(std::move(joiner), why);
  const BackupId id = replica_.next_backup();
  spdlog::info("backup {} joins from {}", to_string(id), joiner.link->peer_address());
  turned_away_said_ = false;
  handle(replica_.step(event::BackupJoined{id}, now()));
  auto shipper = std::make_shared<Shipper>(std::move(joiner.link));
  {
    const std::lock_guard lock(mutex_);
    if (halted_) return;
    peers_.emplace(id, Peer{shipper});
  }
  handle(replica_.step(event::LinkUp{id}, now()));
  listen_to(*shipper);
  if (joiner.joined) joiner.joined(id, {});
}

void ReplicaDriver::turn_away(Joiner joiner, const std::string& why) {
  if (!std::exchange(turned_away_said_, true)) {
    spdlog::warn("turned away a backup from {}: {}", joiner.link->peer_address(), why);
  }
  auto shipper = std::make_shared<Shipper>(std::move(joiner.link));
  shipper->push(message_parcel(protocol::Goodbye{protocol::GoodbyeReason::kDropped, why}));
  shipper->close_when_sent();
  let_leave(std::move(shipper));
  if (joiner.joined) joiner.joined(std::nullopt, why);
}

void ReplicaDriver::listen_to(Shipper& shipper) {
  shipper.link().set_activity_callback([this] {
    const std::lock_guard lock(mutex_);
    activity_ = true;
    changed_.notify_all();
  });
}

// Those that left before have had their time when others follow them.
void ReplicaDriver::let_leave(std::shared_ptr<Shipper> shipper) {
  constexpr std::size_t kMaxLeaving = 4;
  leaving_.push_back(std::move(shipper));
  if (leaving_.size() > kMaxLeaving) leaving_.pop_front();
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
  const std::shared_ptr<Shipper> shipper = peers_.at(backup).shipper;  // what follows may drop it
  protocol::Link& link = shipper->link();
  // Asked before: what arrived until it went down is received below, and comes before the loss.
  const bool up = link.is_up();
  while (auto received = link.receive(std::chrono::nanoseconds(0))) {
    // What this message answers was posted before it was sent: the state machine must have seen that first.
    step_posted_events();
    if (std::holds_alternative<protocol::Divergence>(received->message)) {
      try {
        diverged_pages_ = protocol::decode_page_numbers(received->body);
      } catch (const protocol::ProtocolError& error) {
        link.close();
        handle(replica_.step(event::LinkDown{backup, error.what()}, now()));
        return;
      }
    }
    handle(replica_.receive(backup, received->message, now()));
    if (replica_.state(backup) != protocol::PrimaryReplica::BackupState::kSyncing) continue;
    if (const auto* digests = std::get_if<protocol::DiskDigests>(&received->message)) {
      mailbox_.digests({backup, *digests, std::move(received->body)});
    } else if (const auto* mark = std::get_if<protocol::SyncMark>(&received->message)) {
      mailbox_.reached(backup, *mark);
    }
  }
  const auto peer = peers_.find(backup);
  if (!up && peer != peers_.end() && !std::exchange(peer->second.down_reported, true)) {
    handle(replica_.step(event::LinkDown{backup, link.down_reason()}, now()));
  }
}

void ReplicaDriver::handle(std::vector<event::Effect> effects) {
  {
    const std::lock_guard lock(mutex_);
    if (halted_) return;
  }
  forget_heals_of_the_lost();
  for (const event::Effect& effect : effects) {
    std::visit([this](const auto& one) { carry_out(one); }, effect);
  }
  if (!to_sync_.empty()) mailbox_.start_full_sync(std::exchange(to_sync_, {}));
}

// Before an ExecutedByAll: it does not wait for the lost, and the engine forgets what it takes to heal them.
void ReplicaDriver::forget_heals_of_the_lost() {
  for (const BackupId backup : mailbox_.heals()) {
    if (!replica_.required(backup)) mailbox_.forget_heal(backup);
  }
}

void ReplicaDriver::carry_out(const event::Send& effect) {
  const auto peer = peers_.find(effect.backup);
  if (peer != peers_.end()) peer->second.shipper->push(message_parcel(effect.message));
}

void ReplicaDriver::carry_out(const event::StartFullSync& effect) {
  spdlog::info("backup {}: full sync begins", to_string(effect.backup));
  to_sync_.push_back({effect.backup, peers_.at(effect.backup).shipper});
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
  // A stall may also come between the turn's look at the clock and here.
  if (now() - turn_began_ > silence_timeout_ / 2) commits_held_until_ = now() + silence_timeout_ / 2;
  if (now() < commits_held_until_) {
    held_commit_ = effect;
    return;
  }
  held_commit_.reset();  // it is before this one
  callbacks_.committed(effect.epoch, unprotected_);
}

// Not while it is being decided who leads: what is committed leaves with everything else when that is this host. A turn
// comes at least once each heartbeat interval.
void ReplicaDriver::release_after_stall() {
  if (!held_commit_ || now() < commits_held_until_ || replica_.claiming()) return;
  const event::Committed commit = *std::exchange(held_commit_, {});
  callbacks_.committed(commit.epoch, unprotected_);
}

void ReplicaDriver::carry_out(const event::ExecutedByAll& effect) { mailbox_.executed(effect.epoch); }

void ReplicaDriver::carry_out(const event::Heal& effect) {
  statistics_.diverged();
  const protocol::Divergence& divergence = effect.divergence;
  const std::string pages = divergence.all_pages ? "all of memory" : addresses(diverged_pages_);
  spdlog::warn("backup {}: diverged in epoch {}: {}", to_string(effect.backup), divergence.epoch.value, pages);
  mailbox_.heal({effect.backup, divergence.epoch, std::exchange(diverged_pages_, {}), divergence.all_pages});
}

void ReplicaDriver::carry_out(const event::Healed& effect) {
  spdlog::info("backup {}: healed at the end of epoch {}", to_string(effect.backup), effect.epoch.value);
}

void ReplicaDriver::carry_out(const event::DropBackup& effect) {
  spdlog::warn("backup {}: dropped: {}", to_string(effect.backup), effect.reason);
  mailbox_.dropped(effect.backup);
  protecting_.erase(effect.backup);
  statistics_.set_backups(protecting_.size());
  const auto peer = peers_.find(effect.backup);
  if (peer == peers_.end()) return;
  const std::shared_ptr<Shipper> shipper = peer->second.shipper;
  shipper->retire();
  shipper->link().set_activity_callback([] {});
  departed_bytes_ += shipper->link().sent_bytes();
  {
    const std::lock_guard lock(mutex_);
    peers_.erase(peer);
  }
  let_leave(shipper);
}

void ReplicaDriver::carry_out(const event::Unprotected&) {
  unprotected_ = true;
  spdlog::warn("no backup is left: the guest goes on unprotected");
  mailbox_.unprotected();
}

void ReplicaDriver::carry_out(const event::Replicating&) {
  unprotected_ = false;
  mailbox_.replicating();
}

// The answer comes as an event. Meanwhile the other backups must hear this host.
void ReplicaDriver::carry_out(const event::ClaimTerm& effect) {
  if (!claim_) return post(event::TermWon{effect.term});
  spdlog::warn("a backup is lost or given up: claiming term {}; outputs are held until it is decided", effect.term.value);
  if (claimant_.joinable()) claimant_.join();  // it has posted the answer to the claim before
  claimant_ = std::thread([this, effect] {
    const protocol::Term term = effect.term;
    const protocol::Verdict verdict = claim_({vm_, term, self_, effect.members});
    mailbox_.set_undecided(verdict == protocol::Verdict::kUnreachable);
    switch (verdict) {
      case protocol::Verdict::kWon: return post(event::TermWon{term});
      case protocol::Verdict::kLost:
      case protocol::Verdict::kMember: return post(event::TermLost{term});
      case protocol::Verdict::kUnreachable: return post(event::ArbiterUnreachable{});
    }
  });
}

void ReplicaDriver::carry_out(const event::ReleaseRefused& effect) {
  spdlog::warn("backup {} is not given up: {}", to_string(effect.backup), effect.reason);
}

void ReplicaDriver::carry_out(const event::HandoverRefused& effect) {
  spdlog::warn("no handover to backup {}: {}", to_string(effect.backup), effect.reason);
  mailbox_.handover_ended({HandoverOutcome::Kind::kRefused, effect.reason});
}

void ReplicaDriver::carry_out(const event::HandedOver& effect) {
  spdlog::info("handed over: another replica leads the machine in term {}", effect.term.value);
  mailbox_.handover_ended({HandoverOutcome::Kind::kHandedOver, {}});
}

void ReplicaDriver::carry_out(const event::TakenBack& effect) {
  spdlog::warn("the handover failed ({}): this replica leads on, in term {}", effect.reason, effect.term.value);
  mailbox_.handover_ended({HandoverOutcome::Kind::kTakenBack, effect.reason});
}

void ReplicaDriver::carry_out(const event::Fenced& effect) {
  spdlog::critical("fenced: {}", effect.reason);
  callbacks_.fenced(effect.reason);
}

}  // namespace pollux::primary
