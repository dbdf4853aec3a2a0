#include "primary_host.h"

#include <algorithm>
#include <utility>

#include "backup_host.h"
#include "world.h"

namespace pollux::sim {

using namespace std::chrono_literals;
using namespace protocol;

PrimaryHost::PrimaryHost(World& world, HostId id, std::size_t site, std::int64_t drift_ppm, PrimaryConfig config, Mutant mutant)
    : Host(world, id, site, drift_ppm), replica_(config, mutant), peers_(config.backups), epochs_(1), mutant_(mutant) {}

PrimaryHost::PrimaryHost(World& world, const BackupHost& promoted, PrimaryConfig config, Mutant mutant)
    : Host(world, promoted.id(), promoted.site(), promoted.drift_ppm()),
      replica_(config, mutant),
      first_(config.closed),
      epochs_{{promoted.guest().state().position, false}},
      alone_(true),
      mutant_(mutant),
      closed_(config.closed) {
  disk_ = promoted.disk();
  guest_ = promoted.guest();
}

bool PrimaryHost::Peer::vouches_for(EpochId epoch) const {
  return sync_end_sent && !dropped && (base < epoch || host->acknowledged());
}

void PrimaryHost::start() { schedule_own(world_.epoch_length(), EventKind::kEpoch); }

std::vector<std::size_t> PrimaryHost::links() const {
  std::vector<std::size_t> links;
  for (const Peer& peer : peers_) {
    if (peer.up && !peer.dropped) links.push_back(peer.link);
  }
  return links;
}

bool PrimaryHost::is_protected() const {
  return !alone_ && !replica_.claiming() && std::ranges::any_of(peers_, [](const Peer& peer) {
    return peer.sync_end_sent && !peer.dropped && peer.host->acknowledged() && *peer.host->acknowledged() > peer.base;
  });
}

void PrimaryHost::connect(std::size_t backup, std::size_t link, BackupHost& host) {
  if (is_over()) return;
  Peer& peer = peers_[backup];
  peer.host = &host;
  peer.link = link;
  peer.up = true;
  step(primary::LinkUp{{static_cast<std::uint32_t>(backup)}});
  rearm();
}

// As ReplicaDriver::admit.
bool PrimaryHost::admit(std::size_t link, BackupHost& host) {
  if (stopping_ || !replica_.takes_joiners()) return false;
  const BackupId id = replica_.next_backup();
  world_.require(id.value == peers_.size(), "ids of backups do not count up");
  step(primary::BackupJoined{id});
  peers_.emplace_back();
  connect(id.value, link, host);
  return true;
}

void PrimaryHost::never_connects(std::size_t backup) {
  if (!alive_ || ended_) return;
  step(primary::LinkDown{{static_cast<std::uint32_t>(backup)}, "never connected"});
  rearm();
}

// Everything that arrived, and the link's end after it.
void PrimaryHost::receive_all() {
  for (std::size_t b = 0; b < peers_.size(); ++b) {
    if (!peers_[b].up) continue;
    auto& arrived = world_.network().arrived(peers_[b].link, Direction::kToPrimary);
    while (runs() && !arrived.empty()) {
      const Packet packet = std::move(arrived.front());
      arrived.pop_front();
      const BackupId from{static_cast<std::uint32_t>(b)};
      if (!packet.message) {
        step(primary::LinkDown{from, "reset by peer"});
        continue;
      }
      const bool counted = replica_.counts(from);
      auto effects = replica_.receive(from, *packet.message, local_now());
      world_.note_step(*this, *packet.message, effects);
      if (counted && !replica_.counts(from)) world_.checker().turned_against(*packet.message);
      if (std::holds_alternative<DiskDigests>(*packet.message) && !peers_[b].dropped) {
        schedule_own(1ms, EventKind::kSyncStep, b);
      }
      handle_effects(effects);
    }
  }
  rearm();
}

void PrimaryHost::operator_stop() {
  if (!alive_ || fenced_ || stopping_) return;
  stopped_by_operator_ = stopping_ = true;
  if (holding_ && !alone_ && !asked_) close_epoch();
  end_when_committed();
}

EpochId PrimaryHost::previous_flush(EpochId epoch) const {
  for (std::uint64_t e = epoch.value; e > first_.value + 1;) {
    if (at({--e}).flushed) return {e};
  }
  return {0};  // what was promoted is durable
}

void PrimaryHost::tick() { step(primary::Tick{}); }

void PrimaryHost::on_stall() {
  for (std::size_t b = 0; b < peers_.size(); ++b) {
    if (peers_[b].up) step(primary::Heard{{static_cast<std::uint32_t>(b)}, local_now()});
  }
}

// The guest's epoch. Too many in flight: it grows until the oldest is committed.
void PrimaryHost::on_epoch() {
  if (fenced_ || ended_) return;
  schedule_own(world_.epoch_length(), EventKind::kEpoch);
  if (asked_) {
    if (mutant_ == Mutant::kRunsInHandover) run_on();
    return;
  }
  if (stopping_) return finish_syncs();  // what is held may wait for them
  const bool full = closed_.value - replica_.committed().value >= kMaxEpochsInFlight && !alone_;
  if (wanted_ && holding_ && !alone_ && !full) return stand_still();
  if (!holding_ && !alone_) {
    run_unheld();
  } else if (!full) {
    close_epoch();
  }
  if (!fenced_) finish_syncs();
}

std::optional<BackupId> PrimaryHost::pick(std::size_t pick) const {
  std::vector<BackupId> able;
  for (std::uint32_t b = 0; b < peers_.size(); ++b) {
    if (peers_[b].up && !peers_[b].dropped) able.push_back({b});
  }
  return able.empty() ? std::nullopt : std::optional(able[pick % able.size()]);
}

void PrimaryHost::operator_switch(std::size_t pick) {
  if (!runs() || is_over() || stopping_ || wanted_) return;
  wanted_ = this->pick(pick);
  patience_ = 20;
}

void PrimaryHost::operator_release(std::size_t pick) {
  if (!runs() || is_over() || stopping_) return;
  if (const auto backup = this->pick(pick)) step(primary::Release{*backup});
}

// As the engine: the last epoch is closed, and when it is committed the backup is asked.
void PrimaryHost::stand_still() {
  if (!std::exchange(stands_still_, true)) {
    close_epoch();
  } else if (--patience_ == 0 || replica_.unprotected()) {
    stands_still_ = false;
    wanted_.reset();
    return;
  }
  if (replica_.committed() != closed_ || !releasing_.empty()) return;
  asked_ = true;  // unless it is refused
  step(primary::HandOverTo{*wanted_});
}

// Only of a mutant.
void PrimaryHost::run_on() {
  const std::size_t from = guest_.state().position;
  guest_.run(world_.random());
  releasing_.push_back({{0}, from, guest_.state().position, {}});
  release_ready();
}

void PrimaryHost::run_unheld() {
  const std::size_t from = guest_.state().position;
  guest_.run(world_.random());
  releasing_.push_back({{0}, from, guest_.state().position, {}});
  release_ready();
  epochs_.front().end = guest_.state().position;
}

void PrimaryHost::close_epoch() {
  const std::size_t from = guest_.state().position;
  guest_.run(world_.random());
  const EpochId epoch = closed_.next();
  closed_ = epoch;
  epochs_.push_back({guest_.state().position, world_.random().one_in(3)});
  held_.push_back({epoch, from, guest_.state().position, {}});
  step(primary::EpochClosed{epoch, epochs_.back().flushed});
  for (std::size_t b = 0; b < peers_.size(); ++b) {
    if (peers_[b].sync_end_sent && !peers_[b].dropped) ship_record(epoch, b);
  }
  world_.require(alone_ || fenced_ || held_.size() <= kMaxEpochsInFlight + 1,
                 "more epochs in flight than allowed");
}

void PrimaryHost::ship_record(EpochId epoch, std::size_t backup) {
  const GuestState state = at_end_of(epoch);
  const std::uint64_t pages = 1 + state.hash % 4;
  const std::uint64_t operations = flushed(epoch) ? 2 : 0;
  send(backup, EpochOpen{epoch});
  send(backup, EpochPages{epoch, {{{16}, pages, false}}}, state);
  if (operations > 0) {
    send(backup,
         EpochDiskWrites{epoch,
                         {{{0}, DiskOperationKind::kWrite, 0, 512}, {{0}, DiskOperationKind::kFlush, 0, 0}}});
  }
  send(backup, EpochClose{epoch, pages, 0, operations, flushed(epoch), 64}, state);
}

void PrimaryHost::on_sync_step(std::size_t backup) {
  Peer& peer = peers_[backup];
  if (peer.dropped || fenced_ || ended_ || peer.sync_end_sent) return;
  if (peer.sync_steps_left == 0) {
    peer.sync_ready = true;  // it ends with the epoch
    return;
  }
  schedule_own(world_.random().between(1ms, 30ms), EventKind::kSyncStep, backup);
  if (world_.network().queued(peer.link, Direction::kToBackup) > 16) return;
  --peer.sync_steps_left;
  peer.sync_pages += 2;
  send(backup, SyncPages{{{{16}, 2, false}}});
}

// SyncFinished before SyncEnd: with SyncEnd the backup can take over.
void PrimaryHost::finish_syncs() {
  for (std::size_t b = 0; b < peers_.size(); ++b) {
    Peer& peer = peers_[b];
    if (!peer.sync_ready || peer.dropped || peer.sync_end_sent) continue;
    const BackupId backup{static_cast<std::uint32_t>(b)};
    step(primary::SyncFinished{backup, closed_});
    if (!replica_.required(backup)) continue;
    peer.sync_end_sent = true;
    peer.base = closed_;
    holding_ = true;
    send(b, SyncEnd{closed_, peer.sync_pages, 0, 0, 64}, at_end_of(closed_));
    world_.moment(Moment::kSyncEnd);
  }
}

void PrimaryHost::on_disk(Disk::Job job) {
  if (fenced_) return;
  step(primary::EpochDurable{job.epoch});
  release_ready();
  end_when_committed();
}

// As the gate: nothing may leave any more, and the process ends without a word.
void PrimaryHost::on_disk_failure() { world_.dies(*this); }

void PrimaryHost::on_claim_answer(Term term, Verdict verdict) {
  switch (verdict) {
    case Verdict::kWon: return step(primary::TermWon{term});
    case Verdict::kLost:
    case Verdict::kMember: return step(primary::TermLost{term});
    case Verdict::kUnreachable: return step(primary::ArbiterUnreachable{});
  }
}

void PrimaryHost::step(const primary::Event& event) {
  const auto effects = replica_.step(event, local_now());
  world_.note_step(*this, event, effects);
  handle_effects(effects);
}

void PrimaryHost::handle_effects(const PrimaryUnderTest::Effects& effects) {
  for (const primary::Effect& effect : effects) {
    std::visit([this](const auto& one) { carry_out(one); }, effect);
  }
  end_when_committed();
}

void PrimaryHost::carry_out(const primary::Send& effect) {
  const auto* goodbye = std::get_if<Goodbye>(&effect.message);
  if (goodbye != nullptr && goodbye->reason == GoodbyeReason::kDropped) {
    world_.checker().given_up(*this, effect.backup.value);
  }
  send(effect.backup.value, effect.message);
  if (std::holds_alternative<NewTerm>(effect.message)) world_.moment(Moment::kNewTerm);
  if (std::holds_alternative<HandOver>(effect.message)) world_.moment(Moment::kHandOver);
}

void PrimaryHost::carry_out(const primary::StartFullSync& effect) {
  peers_[effect.backup.value].sync_steps_left = world_.random().below(12);
  send(effect.backup.value, DiskDigestRequest{{0}, 0, 4});
}

void PrimaryHost::carry_out(const primary::Committed& effect) {
  while (!held_.empty() && held_.front().epoch <= effect.epoch) {
    Outputs outputs = held_.front();
    held_.pop_front();
    const bool is_flush = flushed(outputs.epoch);
    if (is_flush) disk_job({outputs.epoch, true});
    // Once alone, nothing leaves before the flushes it may speak of are durable here.
    alone_ |= replica_.unprotected() || effect.durable_first;
    if (alone_) outputs.needs_durable = is_flush ? outputs.epoch : previous_flush(outputs.epoch);
    releasing_.push_back(outputs);
  }
  release_ready();
}

void PrimaryHost::carry_out(const primary::DropBackup& effect) {
  Peer& peer = peers_[effect.backup.value];
  peer.dropped = true;
  if (replica_.fenced()) {
    world_.checker().superseded(*this, effect.backup.value);
  } else {
    world_.checker().given_up(*this, effect.backup.value);
  }
  hang_up(peer);
}

void PrimaryHost::hang_up(Peer& peer) {
  if (std::exchange(peer.up, false)) world_.network().close(peer.link, Direction::kToBackup);
}

void PrimaryHost::carry_out(const primary::Protected&) {
  world_.seen().protected_once = true;
  world_.seen().reprotected |= joined_;
}

void PrimaryHost::carry_out(const primary::Replicating&) {
  alone_ = false;
  joined_ = true;
}

void PrimaryHost::carry_out(const primary::Unprotected&) {
  alone_ |= replica_.unprotected();
  world_.seen().went_alone = true;
}

void PrimaryHost::carry_out(const primary::ClaimTerm& effect) {
  std::vector<HostId> members;
  for (const ReplicaId& member : effect.members) members.push_back(host_of(member));
  world_.claim(id_, effect.term, std::move(members));
}

void PrimaryHost::carry_out(const primary::ReleaseRefused&) {}

void PrimaryHost::carry_out(const primary::HandoverRefused&) {
  asked_ = stands_still_ = false;
  wanted_.reset();
}

void PrimaryHost::carry_out(const primary::TakenBack&) {
  asked_ = stands_still_ = false;
  wanted_.reset();
}

// The links are closed by DropBackup.
void PrimaryHost::carry_out(const primary::HandedOver&) {
  world_.require(held_.empty(), "something is held by a primary that has handed over");
  fenced_ = true;
  world_.seen().handed_over = true;
  releasing_.clear();
}

void PrimaryHost::carry_out(const primary::Fenced&) {
  fenced_ = true;
  world_.seen().primary_fenced = true;
  held_.clear();
  releasing_.clear();
  for (Peer& peer : peers_) {
    hang_up(peer);
    peer.dropped = true;
  }
}

// An orderly end: the last outputs are committed like any other before the backups are told.
void PrimaryHost::end_when_committed() {
  if (!stopping_ || ended_ || fenced_ || !alive_) return;
  if (!held_.empty() || !releasing_.empty()) return;
  ended_ = true;
  step(primary::Stop{GoodbyeReason::kPoweredOff});
  for (Peer& peer : peers_) hang_up(peer);
}

void PrimaryHost::send(std::size_t backup, Message message, GuestState body) {
  if (!peers_[backup].up) return;
  world_.network().send(peers_[backup].link, Direction::kToBackup, {std::move(message), body});
}

}  // namespace pollux::sim
