#include "backup_host.h"

#include <utility>

#include "world.h"

namespace pollux::sim {

using namespace std::chrono_literals;
using namespace protocol;
using State = BackupReplica::State;

BackupHost::BackupHost(World& world, HostId id, std::size_t site, std::int64_t drift_ppm, BackupConfig config, Mutant mutant)
    : Host(world, id, site, drift_ppm), replica_(config, mutant), mutant_(mutant) {}

void BackupHost::connect(std::size_t link, PrimaryHost& primary) {
  if (!alive_) return;
  link_ = link;
  primary_ = &primary;
  up_ = true;
  heard_goodbye_ = false;
  step(backup::LinkUp{});
  rearm();
}

// Idle it waits for another primary, as it did at first.
bool BackupHost::is_over() const { return !alive_ || failed_ || replica_.state() == State::kEnded; }

std::vector<std::size_t> BackupHost::links() const {
  return up_ ? std::vector<std::size_t>{link_} : std::vector<std::size_t>{};
}

void BackupHost::receive_all() {
  if (!up_) return;
  auto& arrived = world_.network().arrived(link_, Direction::kToBackup);
  while (runs() && up_ && !arrived.empty() && replica_.staged_bytes() <= kStagingBytes) {
    const Packet packet = std::move(arrived.front());
    arrived.pop_front();
    receive(packet);
    world_.require(replica_.staged_bytes() <= kStagingBytes + kMaxRecordBytes,
                   "a backup stages more than allowed");
  }
  rearm();
}

void BackupHost::receive(const Packet& packet) {
  if (!packet.message) {
    up_ = false;
    return step(backup::LinkDown{"reset by peer"});
  }
  const Message& message = *packet.message;
  const bool deaf = replica_.state() == State::kClaiming || replica_.state() == State::kIdle || is_over();
  if (const auto* hello = std::get_if<Hello>(&message)) told_term_ = hello->term;
  if (const auto* next = std::get_if<NewTerm>(&message); next != nullptr && !deaf) told_term_ = next->term;
  heard_goodbye_ |= std::holds_alternative<Goodbye>(message) && !deaf;
  const bool was_open = replica_.state() == State::kProtecting || replica_.state() == State::kSyncing;
  const bool was_over = replica_.state() == State::kEnded;
  auto effects = replica_.receive(message, local_now());
  world_.note_step(*this, message, effects);
  if (!was_over && replica_.state() == State::kEnded) world_.checker().turned_against(message);
  synced_ |= replica_.state() == State::kProtecting;
  if (was_open && !is_over()) take_body(message, packet.body);
  handle_effects(effects);
}

// As the engine: the body of a message in order is staged before the effects of its step are carried out.
void BackupHost::take_body(const Message& message, GuestState body) {
  if (const auto* request = std::get_if<DiskDigestRequest>(&message)) {
    carry_out(backup::Send{DiskDigests{request->disk, request->first, request->count}});
  } else if (std::holds_alternative<EpochOpen>(message)) {
    staged_ = {};
  } else if (std::holds_alternative<EpochPages>(message)) {
    staged_.pages = body;
  } else if (std::holds_alternative<EpochClose>(message)) {
    staged_.state = body;
  } else if (std::holds_alternative<SyncEnd>(message)) {
    staged_ = {body, body};
  }
}

void BackupHost::operator_stop() {
  if (!runs() || is_over()) return;
  stopped_by_operator_ = true;
  if (promoting()) return crash();
  step(backup::Stop{});
  hang_up();
}

void BackupHost::run_out_of_memory() {
  if (!runs() || is_over() || !up_ || replica_.state() == State::kClaiming) return;
  fail("out of memory");
}

void BackupHost::on_disk_failure() {
  if (!is_over()) fail("the disk fails");
}

void BackupHost::fail(const char* why) {
  failed_ = true;
  if (up_) carry_out(backup::Send{Goodbye{GoodbyeReason::kDropped, why}});
  hang_up();
}

void BackupHost::tick() {
  if (!failed_) step(backup::Tick{});
}

void BackupHost::on_stall() {
  if (!failed_) step(backup::Heard{local_now()});
}

std::optional<TimePoint> BackupHost::next_deadline() const {
  return failed_ ? std::nullopt : replica_.next_deadline();
}

void BackupHost::on_examined(std::size_t link) {
  if (failed_ || is_over() || link != link_) return;  // or it is over with that link
  if (std::exchange(refuses_, false)) return step(backup::HelloRefused{"not enough memory"});
  step(backup::HelloAccepted{});
}

void BackupHost::on_disk(Disk::Job job) {
  if (failed_) return;
  if (!job.durable) {
    const Record record = to_apply_.front();
    to_apply_.pop_front();
    if (record.pages) pages_ = *record.pages;
    if (record.state) state_ = *record.state;
    step(backup::EpochApplied{job.epoch});
  } else {
    step(backup::EpochDurable{job.epoch});
  }
  claim_when_applied();
  lead_when_applied();
  // With full staging memory this host does not listen: the silence is its own.
  if (replica_.staged_bytes() > kStagingBytes) step(backup::Heard{local_now()});
  receive_all();
}

void BackupHost::on_claim_answer(Term term, Verdict verdict) {
  switch (verdict) {
    case Verdict::kWon: return step(backup::TermWon{term});
    case Verdict::kLost: return step(backup::TermLost{term});
    case Verdict::kMember:
      member_ = true;
      return step(backup::TermOfOwnPrimary{term});
    case Verdict::kUnreachable: return step(backup::ArbiterUnreachable{});
  }
}

void BackupHost::step(const backup::Event& event) {
  if (std::holds_alternative<backup::Tick>(event) && replica_.staged_bytes() > kStagingBytes) {
    handle_effects(replica_.step(backup::Heard{local_now()}, local_now()));
  }
  const auto effects = replica_.step(event, local_now());
  world_.note_step(*this, event, effects);
  handle_effects(effects);
}

void BackupHost::handle_effects(const BackupUnderTest::Effects& effects) {
  for (const backup::Effect& effect : effects) {
    std::visit([this](const auto& one) { carry_out(one); }, effect);
  }
}

void BackupHost::carry_out(const backup::Send& effect) {
  if (const auto* ack = std::get_if<Ack>(&effect.message)) acknowledged_ = ack->epoch;
  world_.network().send(link_, Direction::kToPrimary, {effect.message, {}});
}

void BackupHost::carry_out(const backup::ExamineHello&) {
  schedule_own(world_.random().between(100us, 20ms), EventKind::kExamined, link_);
}

void BackupHost::carry_out(const backup::ApplyEpoch& effect) {
  to_apply_.push_back(std::exchange(staged_, {}));
  disk_job({effect.epoch, false});
}

void BackupHost::carry_out(const backup::MakeDurable& effect) { disk_job({effect.epoch, true}); }

void BackupHost::carry_out(const backup::MakeSyncDurable& effect) { step(backup::SyncDurable{effect.mark}); }

void BackupHost::carry_out(const backup::Disconnect&) { hang_up(); }

void BackupHost::carry_out(const backup::ClaimTerm& effect) {
  world_.checker().claims(*this, effect.term);
  to_claim_ = effect.term;
  if (!disk_.jobs.empty()) world_.moment(Moment::kLastRecords);
  claim_when_applied();
}

// A term that is won by a replica whose disk then fails is spent: nobody leads in it.
void BackupHost::claim_when_applied() {
  const bool applied = disk_.jobs.empty() || mutant_ == Mutant::kClaimBeforeApplied;
  if (!to_claim_ || !applied || is_over()) return;
  world_.claim(id_, *std::exchange(to_claim_, std::nullopt), {});
}

void BackupHost::carry_out(const backup::Promote& effect) {
  hang_up();
  promote_to_ = effect.epoch;
  leads_in_ = effect.term;
  world_.checker().promoted(*this, effect.epoch, effect.term);
  world_.seen().promoted = true;
  world_.seen().member_claimed |= member_;
  world_.moment(Moment::kPromote);
  lead_when_applied();
}

void BackupHost::carry_out(const backup::Fenced&) {
  fenced_ = true;
  world_.seen().backup_fenced = true;
  hang_up();
}

void BackupHost::carry_out(const backup::End&) { hang_up(); }

// Everything whole is on the image first.
void BackupHost::lead_when_applied() {
  if (!promoting() || leads_soon_ || !disk_.jobs.empty()) return;
  leads_soon_ = true;
  const GuestState state = world_.checker().image_at_promotion(*this, *promote_to_, pages_, state_);
  guest_ = Guest(primary_->guest(), state.position);
  schedule_own(1ms, EventKind::kLead);
}

void BackupHost::on_lead() {
  if (!failed_) world_.succeed(*this);
}

void BackupHost::hang_up() {
  if (std::exchange(up_, false)) world_.network().close(link_, Direction::kToPrimary);
}

}  // namespace pollux::sim
