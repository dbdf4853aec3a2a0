#include "world.h"

#include <algorithm>

namespace pollux::sim {

using namespace std::chrono_literals;
using namespace protocol;

namespace {

constexpr Term kFirstTerm{1};
constexpr Time kFaultsUntil = 2s;
constexpr Time kProgressWithin = 8s;  // of calm
constexpr Time kCheckInterval = 100ms;
constexpr Time kArbiterTimeout = 250ms;
constexpr std::uint64_t kOutputsThatFlow = 6;
constexpr std::uint32_t kNobodyWaits = 1;  // for this claim's answer

// Clocks tick differently, some wildly: safety may not hang on them.
std::int64_t draw_drift(Random& random) {
  const std::int64_t most = random.one_in(8) ? 300'000 : 20'000;
  return static_cast<std::int64_t>(random.below(static_cast<std::uint64_t>(2 * most))) - most;
}

Hello make_hello() {
  Hello hello;
  hello.term = kFirstTerm;
  static const ConfigDigest kDigest = digest_config({});
  hello.config_digest = kDigest;
  hello.disk_bytes = {1 << 20};
  return hello;
}

}  // namespace

World::World(std::uint64_t seed, Mutant mutant, std::function<void(const std::string&)> trace)
    : random_(seed),
      trace_(std::move(trace)),
      timing_{50ms, 300ms, 60ms, 700ms},
      epoch_length_(random_.between(15ms, 60ms)),
      backup_count_(1 + random_.below(kMaxBackups)),
      network_(*this, backup_count_),
      checker_(*this),
      arbiter_(kFirstTerm, HostId{0}, mutant == Mutant::kArbiterForgets),
      faults_(draw_faults(random_, backup_count_, kFaultsUntil)) {
  PrimaryConfig primary;
  primary.hello = make_hello();
  primary.backups = backup_count_;
  primary.timing = timing_;
  primary_ = std::make_unique<PrimaryHost>(*this, draw_drift(random_), primary, mutant);
  BackupConfig backup;
  backup.max_record_bytes = BackupHost::kMaxRecordBytes;
  backup.timing = timing_;
  for (std::size_t b = 0; b < backup_count_; ++b) {
    const HostId id{static_cast<std::uint8_t>(1 + b)};
    backups_.push_back(std::make_unique<BackupHost>(*this, id, draw_drift(random_), backup, mutant));
  }
}

World::~World() = default;

void World::run() {
  for (std::size_t f = 0; f < faults_.size(); ++f) {
    if (faults_[f].moment == Moment::kTime) schedule(faults_[f].after, EventKind::kFault, {}, f);
  }
  for (std::size_t b = 0; b < backup_count_; ++b) {
    const Time at = random_.one_in(8) ? random_.between(1ms, 400ms) : random_.between(1ms, 30ms);
    schedule(at, EventKind::kConnect, {}, b);
  }
  schedule(kFaultsUntil, EventKind::kCalm);
  primary_->start();
  while (!done_ && !queue_.empty()) {
    const Event event = queue_.pop();
    now_ = event.at;
    dispatch(event);
  }
}

void World::dispatch(const Event& event) {
  switch (event.kind) {
    case EventKind::kConnect: return connect(event.value);
    case EventKind::kDeliver: {
      const auto direction = static_cast<Direction>(event.value2);
      network_.deliver(event.value, direction);
      Host& to = direction == Direction::kToBackup ? static_cast<Host&>(*backups_[event.value]) : *primary_;
      if (to.runs()) to.receive_all();
      return;
    }
    case EventKind::kClaimArrives: return claim_arrives(event);
    case EventKind::kFault: return begin(faults_[event.value]);
    case EventKind::kFaultEnds:
      if (!calm_) end(faults_[event.value]);
      return;
    case EventKind::kCalm: return calm();
    case EventKind::kCheckProgress: {
      std::string what_lacks;
      done_ = came_to_a_good_end(what_lacks);
      if (!done_ && now_ > kFaultsUntil + kProgressWithin)
        throw Violation("no progress after the faults: " + what_lacks);
      return schedule(now_ + kCheckInterval, EventKind::kCheckProgress);
    }
    default: return host(event.host).handle(event);
  }
}

void World::connect(std::size_t backup) {
  const bool reached = backups_[backup]->alive() && primary_->alive() && !primary_->ended();
  if (!reached || random_.one_in(30)) return primary_->never_connects(backup);
  if (random_.one_in(40)) backups_[backup]->refuse_next();
  network_.open(backup);
  primary_->connect(backup);
  backups_[backup]->connect();
}

// The arbiter.

void World::claim(HostId claimant, Term term) {
  const auto way = [&] {
    return arbiter_slow_ > 0 ? random_.between(50ms, 900ms) : random_.between(200us, 10ms);
  };
  moment(Moment::kClaim);
  if (arbiter_unreachable_[claimant.value] > 0 && random_.one_in(2)) {
    schedule(now_ + kArbiterTimeout, EventKind::kClaimAnswer, claimant, term.value,
             static_cast<std::uint32_t>(Verdict::kUnreachable));
    // The question never gets there, or long after the claimant gave up waiting.
    if (random_.one_in(2))
      schedule(now_ + random_.between(kArbiterTimeout, 2s), EventKind::kClaimArrives, claimant, term.value,
               kNobodyWaits);
    return;
  }
  schedule(now_ + way(), EventKind::kClaimArrives, claimant, term.value);
}

void World::claim_arrives(const Event& event) {
  const Verdict verdict = arbiter_.claim({event.value}, event.host);
  if (event.value2 == kNobodyWaits) return;
  const bool answer_lost = arbiter_unreachable_[event.host.value] > 0;
  const Verdict told = answer_lost ? Verdict::kUnreachable : verdict;
  const Time at = now_ + (answer_lost         ? kArbiterTimeout
                          : arbiter_slow_ > 0 ? random_.between(50ms, 900ms)
                                              : random_.between(200us, 10ms));
  static constexpr const char* kWords[] = {"won", "lost", "unreachable"};
  if (trace_) {
    note(fmt::format("the arbiter decides term {} for replica {}: {}{}", event.value, event.host.value,
                     kWords[static_cast<std::size_t>(verdict)], answer_lost ? " (the answer is lost)" : ""));
  }
  schedule(at, EventKind::kClaimAnswer, event.host, event.value, static_cast<std::uint32_t>(told));
}

// Faults.

void World::moment(Moment moment) {
  if (calm_) return;
  for (std::size_t f = 0; f < faults_.size(); ++f) {
    if (faults_[f].moment != moment || faults_[f].armed) continue;
    faults_[f].armed = true;
    schedule(now_ + faults_[f].after, EventKind::kFault, {}, f);
  }
}

void World::begin(const Fault& fault) {
  if (calm_) return;
  if (trace_) note(to_string(fault));
  const std::size_t index = static_cast<std::size_t>(&fault - faults_.data());
  schedule(now_ + fault.length, EventKind::kFaultEnds, {}, index);
  Host& target = host(fault.host);
  switch (fault.kind) {
    case FaultKind::kCrash: return cut_off(fault.host, false);
    case FaultKind::kPowerLoss: return cut_off(fault.host, true);
    case FaultKind::kPause: return target.pause();
    case FaultKind::kBreakLink: return network_.break_link(fault.link);
    case FaultKind::kStallOneWay: return network_.stall(fault.link, fault.direction);
    case FaultKind::kStallBothWays:
      network_.stall(fault.link, Direction::kToBackup);
      return network_.stall(fault.link, Direction::kToPrimary);
    case FaultKind::kDelay: return network_.set_extra_delay(fault.link, fault.length / 4);
    case FaultKind::kSlowDisk: return target.set_slow_disk(true);
    case FaultKind::kNoMemory: return backups_[fault.link]->fail();
    case FaultKind::kArbiterUnreachable: ++arbiter_unreachable_[fault.host.value]; return;
    case FaultKind::kArbiterDown:
      for (int& faults : arbiter_unreachable_) ++faults;
      return;
    case FaultKind::kArbiterSlow: ++arbiter_slow_; return;
    case FaultKind::kSwitchover: return primary_->operator_switch(fault.link);
    case FaultKind::kRelease: return primary_->operator_release(fault.link);
    case FaultKind::kOperatorStop:
      if (target.runs()) target.operator_stop();
      return;
  }
}

void World::end(const Fault& fault) {
  Host& target = host(fault.host);
  switch (fault.kind) {
    case FaultKind::kPause: return target.resume();
    case FaultKind::kStallOneWay: return network_.heal(fault.link, fault.direction);
    case FaultKind::kStallBothWays:
      network_.heal(fault.link, Direction::kToBackup);
      return network_.heal(fault.link, Direction::kToPrimary);
    case FaultKind::kDelay: return network_.set_extra_delay(fault.link, 0ms);
    case FaultKind::kSlowDisk: return target.set_slow_disk(false);
    case FaultKind::kArbiterUnreachable: --arbiter_unreachable_[fault.host.value]; return;
    case FaultKind::kArbiterDown:
      for (int& faults : arbiter_unreachable_) --faults;
      return;
    case FaultKind::kArbiterSlow: --arbiter_slow_; return;
    default: return;
  }
}

void World::cut_off(HostId id, bool silently) {
  host(id).crash();
  for (std::size_t link = 0; link < backup_count_; ++link) {
    if (id.value != 0 && link + 1 != id.value) continue;
    if (silently) {
      network_.silence(link);
    } else {
      network_.close(link, id.value == 0 ? Direction::kToBackup : Direction::kToPrimary);
    }
  }
}

void World::calm() {
  if (trace_) note("calm: every fault ends");
  for (std::size_t link = 0; link < backup_count_; ++link) {
    network_.heal(link, Direction::kToBackup);
    network_.heal(link, Direction::kToPrimary);
    network_.set_extra_delay(link, 0ms);
  }
  arbiter_unreachable_ = {};
  arbiter_slow_ = 0;
  calm_ = true;
  for (std::uint8_t h = 0; h < 1 + backup_count_; ++h) {
    host({h}).set_slow_disk(false);
    host({h}).resume();
    released_at_calm_[h] = host({h}).released();
  }
  schedule(now_ + kCheckInterval, EventKind::kCheckProgress);
}

const Host* World::leader() const {
  for (const auto& backup : backups_) {
    if (backup->alive() && (backup->leads() || backup->promoting())) return backup.get();
  }
  return primary_->alive() && !primary_->fenced() && !primary_->ended() ? primary_.get() : nullptr;
}

bool World::came_to_a_good_end(std::string& what_lacks) const {
  const Host* leads = leader();
  const bool primary_leads = leads == primary_.get();
  if (!primary_leads && primary_->alive() && !primary_->fenced() && !primary_->ended()) {
    what_lacks = "the primary does not know that it was replaced";
    return false;
  }
  for (const auto& backup : backups_) {
    if (primary_leads || backup.get() == leads || backup->is_over()) continue;
    what_lacks = fmt::format("backup {} is left {}", backup->link(), to_string(backup->state()));
    return false;
  }
  if (leads != nullptr) {
    what_lacks = fmt::format("replica {} leads and lets nothing out", leads->id().value);
    return leads->released() >= released_at_calm_[leads->id().value] + kOutputsThatFlow;
  }
  const Host& last = host(arbiter_.owner(arbiter_.last()));
  what_lacks = fmt::format("replica {} has the last term and does not lead", last.id().value);
  return !last.alive() || last.stopped_by_operator();
}

Outcome World::outcome() const {
  Outcome outcome;
  for (const auto& backup : backups_) {
    outcome.protected_once |= backup->acknowledged().has_value();
    outcome.promoted |= backup->leads() || backup->promoting();
    outcome.backup_fenced |= backup->fenced();
  }
  outcome.primary_fenced = primary_->fenced();
  outcome.handed_over = primary_->handed_over();
  outcome.went_alone = primary_->alone();
  outcome.machine_lost = leader() == nullptr && !host(arbiter_.owner(arbiter_.last())).stopped_by_operator();
  return outcome;
}

Host& World::host(HostId id) {
  return id.value == 0 ? static_cast<Host&>(*primary_) : *backups_[id.value - 1u];
}

const Host& World::host(HostId id) const {
  return id.value == 0 ? static_cast<const Host&>(*primary_) : *backups_[id.value - 1u];
}

// The trace.

void World::note(const std::string& what) {
  trace_(fmt::format("{:>10.3f} ms  -- {}", static_cast<double>(now_.count()) / 1e6, what));
}

void World::trace_step(const Host& host, const std::string& step, const std::vector<std::string>& effects) {
  const auto routine = [](const std::string& text) { return text.find("Heartbeat(") != std::string::npos; };
  if ((step == "Tick" || routine(step)) && std::all_of(effects.begin(), effects.end(), routine)) return;
  const std::string who = host.id().value == 0 ? "primary " : fmt::format("backup {}", host.id().value - 1);
  std::string line = fmt::format("{:>10.3f} ms  {}  {}", static_cast<double>(now_.count()) / 1e6, who, step);
  for (std::size_t e = 0; e < effects.size(); ++e) line += (e == 0 ? "  ->  " : ", ") + effects[e];
  trace_(line);
}

}  // namespace pollux::sim
