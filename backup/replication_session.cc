#include "backup/replication_session.h"

#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include <algorithm>

#include "base/error.h"

namespace pollux::backup {

namespace event = protocol::backup;
using protocol::Message;
using protocol::TimePoint;

namespace {

TimePoint now() { return std::chrono::steady_clock::now(); }

// Most states are one piece, which is not copied.
void append(Bytes& bytes, Bytes piece) {
  if (bytes.empty()) {
    bytes = std::move(piece);
  } else {
    bytes.insert(bytes.end(), piece.begin(), piece.end());
  }
}

protocol::BackupConfig replica_config(const protocol::ReplicaId& self, protocol::Timing timing, std::uint64_t staging_bytes,
                                      protocol::OnDivergence on_divergence) {
  protocol::BackupConfig config;
  config.self = self;
  config.timing = timing;
  config.max_record_bytes = staging_bytes;
  config.on_divergence = on_divergence;
  return config;
}

}  // namespace

ReplicationSession::ReplicationSession(std::unique_ptr<protocol::Link> link, vmm::Backends& backends,
                                       protocol::Timing timing, std::uint64_t staging_bytes, Rehearsal rehearsal,
                                       protocol::Claim claim, LockstepSettings lockstep)
    : link_(std::move(link)),
      backends_(backends),
      staging_bytes_(staging_bytes),
      rehearsal_(std::move(rehearsal)),
      claim_(std::move(claim)),
      replica_(replica_config(self_, timing, staging_bytes, lockstep.on_divergence)),
      epoch_length_(lockstep.epoch_length),
      silence_timeout_(timing.silence_timeout) {}

ReplicationSession::~ReplicationSession() {
  link_->set_activity_callback([] {});
  applier_.reset();  // its thread posts to the members below it
}

void ReplicationSession::stop() {
  const std::lock_guard lock(mutex_);
  stop_requested_ = true;
  changed_.notify_all();
}

SessionOutcome ReplicationSession::run() {
  link_->set_activity_callback([this] {
    const std::lock_guard lock(mutex_);
    activity_ = true;
    changed_.notify_all();
  });
  step(event::LinkUp{});
  last_turn_ = now();
  while (!outcome_) {
    wait_for_work();
    step_posted_events();
    if (outcome_) break;
    receive_some();
    if (outcome_) break;
    step(event::Heard{last_heard()});
    if (!link_->is_up() && !link_down_seen_) {
      // What arrived whole before the end still counts.
      while (!outcome_) {
        auto received = link_->receive(std::chrono::nanoseconds(0));
        if (!received) break;
        receive_one(std::move(*received));
      }
      link_down_seen_ = true;
      if (!outcome_) step(event::LinkDown{link_->down_reason()});
    }
    if (!outcome_) step(event::Tick{});
    if (const std::uint64_t ignored = outcome_ || !lockstep_ ? 0 : lockstep_->take_ignored()) step(event::OwnInterrupts{ignored});
    send_ack();
  }
  if (!outcome_->promote || handed_over_) (void)link_->flush(std::chrono::seconds(1));
  link_->close();
  return *outcome_;
}

// The primary is silent only for one who listens. A process that was stopped (SIGSTOP, a suspended host, a stolen
// processor, a disk that hangs during full sync) finds old times when it wakes and the primary's bytes unread; and one
// that does not take what has come makes the silence itself. Both begin to count afresh. The loop turns at least once
// each heartbeat interval, so a gap of half the timeout is a stall of ours.
TimePoint ReplicationSession::last_heard() {
  const TimePoint turn = now();
  const bool stalled = turn - last_turn_ > silence_timeout_ / 2;
  last_turn_ = turn;
  return stalled || unread_ ? turn : link_->last_received();
}

// Some only, and no more when a heartbeat is due: those go out however busy the link and slow the disk is. With full
// staging memory none: the primary's data waits in the link, and so, by TCP, at the primary.
void ReplicationSession::receive_some() {
  constexpr int kMessagesPerTurn = 16;
  unread_ = true;
  for (int i = 0; i < kMessagesPerTurn; ++i) {
    if (outcome_ || replica_.staged_bytes() > staging_bytes_) return;
    auto received = link_->receive(std::chrono::nanoseconds(0));
    if (!received) {
      unread_ = false;
      return;
    }
    receive_one(std::move(*received));
    step_posted_events();
    if (const auto deadline = replica_.next_deadline(); deadline && now() >= *deadline) break;
  }
  const std::lock_guard lock(mutex_);
  activity_ = true;  // there may be more
}

void ReplicationSession::wait_for_work() {
  std::unique_lock lock(mutex_);
  const bool full = replica_.staged_bytes() > staging_bytes_;
  const auto ready = [&] {
    return stop_requested_ || !events_.empty() || !disk_failure_.empty() || (activity_ && !full);
  };
  if (const auto deadline = replica_.next_deadline()) {
    changed_.wait_until(lock, *deadline, ready);
  } else {
    changed_.wait(lock, ready);
  }
  if (!full) activity_ = false;
}

void ReplicationSession::step_posted_events() {
  std::deque<event::Event> events;
  std::string disk_failure;
  bool stop = false;
  {
    const std::lock_guard lock(mutex_);
    events.swap(events_);
    disk_failure = disk_failure_;
    stop = std::exchange(stop_requested_, false);
  }
  for (const event::Event& event : events) {
    if (!outcome_) step(event);
  }
  if (!outcome_ && !disk_failure.empty()) fail(disk_failure);
  if (!outcome_ && stop) step(event::Stop{});
}

void ReplicationSession::post(event::Event event, Wake wake) {
  const std::lock_guard lock(mutex_);
  events_.push_back(std::move(event));
  if (wake == Wake::kYes) changed_.notify_all();
}

void ReplicationSession::step(const event::Event& event) {
  auto effects = replica_.step(event, now());
  if (replica_.state() == protocol::BackupReplica::State::kClaiming && detected_ == TimePoint{}) detected_ = now();
  handle(std::move(effects));
  publish_status();
}

// For whoever asks: the state machine itself is this thread's alone.
void ReplicationSession::publish_status() {
  const std::lock_guard lock(mutex_);
  status_ = {vm_, replica_.term(), replica_.state(), replica_.last_whole(), replica_.last_acknowledged(),
             replica_.staged_bytes(), link_->peer_address()};
}

SessionStatus ReplicationSession::status() const {
  const std::lock_guard lock(mutex_);
  return status_;
}

// The header first: the state machine says whether the message is in order; only then is its body looked at. A
// record's body must be staged before the effects of its close are carried out.
void ReplicationSession::receive_one(protocol::Received received) {
  if (replica_.state() == protocol::BackupReplica::State::kClaiming) return;  // it hears nobody
  auto effects = replica_.receive(received.message, now());
  for (const event::Effect& effect : effects) {
    if (std::holds_alternative<event::End>(effect)) {
      handle(std::move(effects));
      return;
    }
  }
  try {
    take_body(received.message, std::move(received.body));
    handle(std::move(effects));
  } catch (const Error& error) {
    fail(error.what());
  }
}

void ReplicationSession::take_body(const Message& message, Bytes body) {
  if (const auto* request = std::get_if<protocol::DiskDigestRequest>(&message)) {
    const Bytes digests = image_->digests(*request);
    send(protocol::DiskDigests{request->disk, request->first, request->count}, digests);
  } else if (const auto* blocks = std::get_if<protocol::DiskBlocks>(&message)) {
    image_->write_blocks(*blocks, body);
  } else if (const auto* sync_pages = std::get_if<protocol::SyncPages>(&message)) {
    image_->write_pages(*sync_pages, body);
  } else if (std::holds_alternative<protocol::MachineState>(message) || std::holds_alternative<protocol::SyncEnd>(message) ||
             std::holds_alternative<protocol::EpochClose>(message)) {
    append(staged_.state, std::move(body));
    const auto* close = std::get_if<protocol::EpochClose>(&message);
    if (close != nullptr && close->clock) staged_.clock = *close->clock;
  } else if (std::holds_alternative<protocol::EpochOpen>(message)) {
    staged_ = {};
  } else if (const auto* pages = std::get_if<protocol::EpochPages>(&message)) {
    image_->check(*pages);
    staged_.pages.emplace_back(*pages, std::move(body));
  } else if (const auto* writes = std::get_if<protocol::EpochDiskWrites>(&message)) {
    image_->check(*writes);
    staged_.disk_writes.emplace_back(*writes, std::move(body));
  } else if (std::holds_alternative<protocol::EpochInputs>(message)) {
    staged_.inputs.insert(staged_.inputs.end(), body.begin(), body.end());
  } else if (std::holds_alternative<protocol::EpochDigest>(message)) {
    staged_.digest.insert(staged_.digest.end(), body.begin(), body.end());
  }
}

// On the applier's thread.
void ReplicationSession::set_diverged(DivergedEpoch diverged) {
  const event::Diverged event{diverged.epoch, static_cast<std::uint32_t>(diverged.pages.size()), diverged.all_pages};
  {
    const std::lock_guard lock(mutex_);
    diverged_ = std::move(diverged);
  }
  post(event);
}

std::string ReplicationSession::failure_of_disk() {
  const std::lock_guard lock(mutex_);
  return disk_failure_;
}

// This backup cannot go on, whatever the primary does.
void ReplicationSession::fail(const std::string& reason) {
  send(protocol::Goodbye{protocol::GoodbyeReason::kDropped, reason});
  outcome_ = SessionOutcome{.failed = true, .reason = reason};
}

void ReplicationSession::handle(std::vector<event::Effect> effects) {
  for (const event::Effect& effect : effects) {
    std::visit([this](const auto& one) { carry_out(one); }, effect);
  }
}

void ReplicationSession::carry_out(const event::Send& effect) {
  if (const auto* ack = std::get_if<protocol::Ack>(&effect.message)) {
    ack_ = *ack;
    return;
  }
  refused_ |= std::holds_alternative<protocol::Refuse>(effect.message);
  send(effect.message);
}

void ReplicationSession::send(const protocol::Message& message, ByteView body) {
  send_ack();  // messages stay in their order
  link_->send(message, body);
}

void ReplicationSession::send_ack() {
  if (const auto ack = std::exchange(ack_, {})) link_->send(*ack);
}

void ReplicationSession::carry_out(const event::ExamineHello& effect) {
  try {
    const vmm::MachineConfig config = vmm::decode_machine_config(effect.hello.machine_config);
    const bool lockstep = effect.hello.strategy == protocol::Strategy::kLockstep;
    if (lockstep && config.profile != vmm::MachineProfile::kDeterministic) {
      throw Error("only a deterministic machine can be executed in lockstep");
    }
    const bool disks_agree =
        std::equal(config.disks.begin(), config.disks.end(), effect.hello.disk_bytes.begin(), effect.hello.disk_bytes.end(),
                   [](const vmm::DiskConfig& disk, std::uint64_t bytes) { return disk.size == bytes; });
    if (!disks_agree) throw Error("the hello's disks are not those of its machine");
    // A record may hold every page once.
    if (config.memory_bytes + kRecordMargin > staging_bytes_) {
      throw Error(fmt::format("a machine of {} MiB needs --staging {}M at this backup", config.memory_bytes >> 20,
                              (config.memory_bytes + kRecordMargin) >> 20));
    }
    if (const auto mismatch = ReplicaImage::mismatch(config, backends_)) {
      throw Error(*mismatch);
    }
    image_ = std::make_unique<ReplicaImage>(config, backends_);
    lockstep_.reset();
    if (lockstep) lockstep_ = std::make_unique<LockstepReplica>(*image_, backends_, epoch_length_);
    spdlog::info("machine {}: {} MiB, {} vCPU(s), {} disk(s), {} NIC(s)", to_string(effect.hello.vm),
                 config.memory_bytes >> 20, config.vcpus, config.disks.size(), config.nics.size());
    vm_ = effect.hello.vm;
    step(event::HelloAccepted{});
  } catch (const Error& error) {
    step(event::HelloRefused{error.what()});
  }
}

void ReplicationSession::carry_out(const event::BeginSync&) {
  spdlog::info("full sync begins");
  sync_begun_ = true;
  applier_ = std::make_unique<Applier>(
      *image_, lockstep_.get(), [this](event::Event event, bool more) { post(std::move(event), more ? Wake::kNo : Wake::kYes); },
      [this](DivergedEpoch diverged) { set_diverged(std::move(diverged)); },
      [this](std::string failure) {
        const std::lock_guard lock(mutex_);
        disk_failure_ = std::move(failure);
        changed_.notify_all();
      });
}

void ReplicationSession::carry_out(const event::ApplyEpoch& effect) {
  last_whole_at_ = now();
  if (!sync_complete_) {
    rehearsal_(image_->config(), staged_.state);
    sync_complete_ = true;
    spdlog::info("full sync complete: protecting from the end of epoch {}", effect.epoch.value);
  }
  staged_.epoch = effect.epoch;
  applier_->apply(std::exchange(staged_, {}));
}

void ReplicationSession::carry_out(const event::MakeDurable& effect) { applier_->make_durable(effect.epoch); }

void ReplicationSession::carry_out(const event::MakeSyncDurable& effect) { applier_->make_durable(effect.mark); }

void ReplicationSession::carry_out(const event::ReportDivergence& effect) {
  std::vector<protocol::PageNumber> pages;
  {
    const std::lock_guard lock(mutex_);
    POLLUX_ASSERT(diverged_.epoch == effect.message.epoch);
    pages = std::move(diverged_.pages);
  }
  send(effect.message, protocol::encode_page_numbers(pages));
}

void ReplicationSession::carry_out(const event::DiscardPartial& effect) {
  if (!replica_.diverged()) spdlog::info("epoch {} never came whole: discarded", effect.epoch.value);
  staged_ = {};
}

void ReplicationSession::carry_out(const event::Disconnect& effect) {
  outcome_ = SessionOutcome{.again = true, .reason = effect.reason};
}

// Nobody is heard while claiming, so there is nothing else to do meanwhile.
void ReplicationSession::carry_out(const event::ClaimTerm& effect) {
  if (detected_ == TimePoint{}) detected_ = now();  // a handover
  publish_status();  // the arbiter may take its time
  handed_over_ = replica_.handed_over();
  // Everything whole is in the image first, and durable where that was promised. A disk that fails must do so before the term
  // is taken: won by a replica that cannot lead, it would be spent, with the other backups fenced and a primary that could lead
  // on standing still. After this nothing more comes to the disk.
  if (!applier_->drain()) return fail(failure_of_disk());
  switch (claim_ ? claim_({vm_, effect.term, self_}) : protocol::Verdict::kWon) {
    case protocol::Verdict::kWon: return step(event::TermWon{effect.term});
    case protocol::Verdict::kLost: return step(event::TermLost{effect.term});
    case protocol::Verdict::kMember: return step(event::TermOfOwnPrimary{effect.term});
    case protocol::Verdict::kUnreachable:
      spdlog::warn("the primary is lost, and the arbiter of term {} cannot be asked now", effect.term.value);
      return step(event::ArbiterUnreachable{});
  }
}

void ReplicationSession::carry_out(const event::Promote& effect) {
  outcome_ = SessionOutcome{.promote = true,
                            .reason = effect.reason,
                            .vm = vm_,
                            .term = effect.term,
                            .epoch = effect.epoch,
                            .uncertain_io = effect.uncertain_io,
                            .epoch_received = last_whole_at_,
                            .last_heard = link_->last_received(),
                            .detected = detected_};
}

void ReplicationSession::carry_out(const event::Fenced& effect) {
  outcome_ = SessionOutcome{.failed = true, .fenced = true, .reason = "fenced: " + effect.reason};
}

void ReplicationSession::carry_out(const event::End& effect) {
  // After a refusal nothing here was touched: a primary with another machine may come.
  std::string reason = effect.reason;
  if (sync_begun_ && !sync_complete_ && backends_.disk_count() > 0) {
    reason += "; the disks here are half overwritten: start no guest from them, a new full sync mends them";
  }
  outcome_ = SessionOutcome{.again = refused_, .failed = effect.failed, .reason = reason};
}

}  // namespace pollux::backup
