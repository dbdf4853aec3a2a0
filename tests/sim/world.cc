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

// More than these are not started: a world ends.
constexpr std::size_t kMaxReplicas = 200;

BackupConfig backup_config(HostId id, const Timing& timing) {
  BackupConfig config;
  config.self = replica_id(id);
  config.max_record_bytes = BackupHost::kMaxRecordBytes;
  config.timing = timing;
  return config;
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
      network_(*this, mutant != Mutant::kFramesNotChecked),
      checker_(*this),
      arbiter_(kFirstTerm, HostId{0}, mutant == Mutant::kArbiterForgets),
      faults_(draw_faults(random_, backup_count_, kFaultsUntil)),
      struck_(faults_.size()),
      arbiter_unreachable_(1 + backup_count_),
      restarts_(!random_.one_in(4)),
      mutant_(mutant) {
  PrimaryConfig primary;
  primary.hello = make_hello();
  primary.backups = backup_count_;
  primary.timing = timing_;
  sites_.push_back({0});
  add<PrimaryHost>(*this, HostId{0}, std::size_t{0}, draw_drift(random_), primary, mutant_);
  for (std::size_t b = 0; b < backup_count_; ++b) {
    sites_.push_back({static_cast<std::uint8_t>(replicas_.size())});
    add<BackupHost>(*this, sites_.back(), 1 + b, draw_drift(random_), backup_config(sites_.back(), timing_), mutant_);
  }
}

World::~World() = default;

template <class Kind, class... Arguments>
Kind& World::add(Arguments&&... arguments) {
  auto made = std::make_unique<Kind>(std::forward<Arguments>(arguments)...);
  Kind& added = *made;
  ever_.push_back(std::move(made));
  if (added.id().value == replicas_.size()) {
    replicas_.push_back(&added);
  } else {
    replicas_[added.id().value] = &added;
  }
  return added;
}

void World::run() {
  for (std::size_t f = 0; f < faults_.size(); ++f) {
    if (faults_[f].moment == Moment::kTime) schedule(faults_[f].after, EventKind::kFault, {}, f);
  }
  for (std::size_t b = 0; b < backup_count_; ++b) {
    const Time at = random_.one_in(8) ? random_.between(1ms, 400ms) : random_.between(1ms, 30ms);
    schedule(at, EventKind::kConnect, {}, b);
  }
  for (std::size_t site = 0; site < sites_.size(); ++site) schedule(500ms, EventKind::kTend, {}, site);
  schedule(kFaultsUntil, EventKind::kCalm);
  primary_at(0)->start();
  while (!done_ && !queue_.empty()) {
    const Event event = queue_.pop();
    now_ = event.at;
    dispatch(event);
    for (const HostId replica : sites_) host(replica).check(checker_);
  }
}

void World::dispatch(const Event& event) {
  switch (event.kind) {
    case EventKind::kConnect: return connect(event.value);
    case EventKind::kTend: return tend(event.value);
    case EventKind::kDeliver: {
      network_.deliver(event.value, event.value2);
      const Ends& ends = links_[event.value];
      Host& to = Network::direction_of(event.value2) == Direction::kToBackup ? static_cast<Host&>(*ends.backup) : *ends.primary;
      if (to.runs()) to.receive_all();
      return;
    }
    case EventKind::kSendAgain: return network_.send_again(event.value, event.value2);
    case EventKind::kClaimArrives: return claim_arrives(event);
    case EventKind::kFault: return begin(event.value);
    case EventKind::kFaultEnds:
      if (!calm_) end(event.value);
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

// Replicas, and what connects them.

void World::connect(std::size_t backup) {
  PrimaryHost* primary = primary_at(0);
  BackupHost* host = backup_at(1 + backup);
  if (primary == nullptr || primary->id() != HostId{0} || primary->is_over()) return;
  if (host == nullptr || !host->alive() || random_.one_in(30)) return primary->never_connects(backup);
  if (random_.one_in(40)) host->refuse_next();
  const std::size_t link = this->link(*primary, *host);
  network_.open(link);
  primary->connect(backup, link, *host);
  host->connect(link, *primary);
}

std::size_t World::link(PrimaryHost& primary, BackupHost& backup) {
  links_.push_back({&primary, &backup});
  return network_.add();
}

// As whoever looks after a host: the process is started again when it has ended, and joins whoever leads.
void World::tend(std::size_t site) {
  schedule(now_ + random_.between(20ms, 200ms), EventKind::kTend, {}, site);
  if (at(site).is_over()) {
    if ((restarts_ || calm_) && replicas_.size() < kMaxReplicas) start_replica(site);
  } else if (BackupHost* backup = backup_at(site); backup != nullptr && backup->wants_link()) {
    join(*backup);
  }
}

void World::start_replica(std::size_t site) {
  const HostId id{static_cast<std::uint8_t>(replicas_.size())};
  if (trace_) note(fmt::format("site {} starts replica {}", site, id.value));
  const std::int64_t drift_ppm = at(site).drift_ppm();
  sites_[site] = id;
  add<BackupHost>(*this, id, site, drift_ppm, backup_config(id, timing_), mutant_);
}

// At the first that answers as a primary, be it that it leads no more and does not know it.
void World::join(BackupHost& joiner) {
  const std::size_t begin = random_.below(sites_.size());
  for (std::size_t s = 0; s < sites_.size(); ++s) {
    PrimaryHost* primary = primary_at((begin + s) % sites_.size());
    if (primary == nullptr || !primary->runs() || primary->is_over()) continue;
    const std::size_t link = this->link(*primary, joiner);
    network_.open(link);
    if (random_.one_in(40)) joiner.refuse_next();
    joiner.connect(link, *primary);
    if (primary->admit(link, joiner)) return;
    network_.send(link, Direction::kToBackup, {Goodbye{GoodbyeReason::kDropped, "not now"}, {}});
    return network_.close(link, Direction::kToBackup);
  }
}

void World::succeed(BackupHost& promoted) {
  PrimaryConfig config;
  config.hello = make_hello();
  config.hello.term = promoted.leads_in();
  if (mutant_ == Mutant::kSuccessorKeepsTerm) config.hello.term = promoted.told_term();
  config.backups = 0;
  config.closed = promoted.promoted_to();
  config.timing = timing_;
  seen_.succeeded_twice |= promoted.primary().succeeded();
  if (trace_) note(fmt::format("replica {} leads", promoted.id().value));
  add<PrimaryHost>(*this, promoted, config, mutant_).start();
}

BackupHost* World::backup_at(std::size_t site) const { return dynamic_cast<BackupHost*>(&at(site)); }

PrimaryHost* World::primary_at(std::size_t site) const { return dynamic_cast<PrimaryHost*>(&at(site)); }

// The arbiter.

void World::claim(HostId claimant, Term term, std::vector<HostId> members) {
  const auto [claimed, first] = claimed_.try_emplace({claimant, term}, members);
  require(first || claimed->second == members, "a claim was repeated with other members");
  const auto way = [&] {
    return arbiter_slow_ > 0 ? random_.between(50ms, 900ms) : random_.between(200us, 10ms);
  };
  moment(Moment::kClaim);
  if (arbiter_unreachable_[host(claimant).site()] > 0 && random_.one_in(2)) {
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
  const Verdict verdict = arbiter_.claim({event.value}, event.host, claimed_.at({event.host, {event.value}}));
  if (event.value2 == kNobodyWaits) return;
  const bool answer_lost = arbiter_unreachable_[host(event.host).site()] > 0;
  const Verdict told = answer_lost ? Verdict::kUnreachable : verdict;
  const Time at = now_ + (answer_lost         ? kArbiterTimeout
                          : arbiter_slow_ > 0 ? random_.between(50ms, 900ms)
                                              : random_.between(200us, 10ms));
  static constexpr const char* kWords[] = {"won", "lost", "lost to its own primary", "unreachable"};
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

void World::begin(std::size_t index) {
  if (calm_) return;
  const Fault& fault = faults_[index];
  if (trace_) note(to_string(fault));
  Host& target = at(fault.site);
  // The link of the backup there, or else any.
  const BackupHost* linked = backup_at(1 + fault.backup);
  const std::vector<std::size_t> links = linked != nullptr ? linked->links() : std::vector<std::size_t>{};
  if (links.empty() && links_.empty()) return;
  const std::size_t link = !links.empty() ? links.front() : random_.below(links_.size());
  struck_[index] = {target.id(), link};
  schedule(now_ + fault.length, EventKind::kFaultEnds, {}, index);
  PrimaryHost* leads = leader();
  switch (fault.kind) {
    case FaultKind::kCrash: return cut_off(target, false);
    case FaultKind::kPowerLoss: return cut_off(target, true);
    case FaultKind::kPause: return target.pause();
    case FaultKind::kBreakLink: return network_.break_link(link);
    case FaultKind::kStallOneWay: return network_.stall(link, fault.direction);
    case FaultKind::kStallBothWays:
      network_.stall(link, Direction::kToBackup);
      return network_.stall(link, Direction::kToPrimary);
    case FaultKind::kDelay: return network_.set_extra_delay(link, fault.length / 4);
    case FaultKind::kLoss: return network_.set_weather(link, Weather::kLoss, true);
    case FaultKind::kRepetition: return network_.set_weather(link, Weather::kRepetition, true);
    case FaultKind::kReordering: return network_.set_weather(link, Weather::kReordering, true);
    case FaultKind::kFrameLost: return network_.play_mischief(link, fault.direction, Mischief::kLost);
    case FaultKind::kFrameRepeated: return network_.play_mischief(link, fault.direction, Mischief::kRepeated);
    case FaultKind::kFrameSwapped: return network_.play_mischief(link, fault.direction, Mischief::kSwapped);
    case FaultKind::kSlowDisk: return target.set_slow_disk(true);
    case FaultKind::kDiskFails: return target.fail_disk();
    case FaultKind::kNoMemory:
      if (BackupHost* backup = backup_at(1 + fault.backup)) backup->run_out_of_memory();
      return;
    case FaultKind::kArbiterUnreachable: ++arbiter_unreachable_[fault.site]; return;
    case FaultKind::kArbiterDown:
      for (int& faults : arbiter_unreachable_) ++faults;
      return;
    case FaultKind::kArbiterSlow: ++arbiter_slow_; return;
    case FaultKind::kSwitchover:
      if (leads != nullptr) leads->operator_switch(fault.backup);
      return;
    case FaultKind::kRelease:
      if (leads != nullptr) leads->operator_release(fault.backup);
      return;
    case FaultKind::kOperatorStop:
      if (target.runs()) target.operator_stop();
      return;
  }
}

void World::end(std::size_t index) {
  const Fault& fault = faults_[index];
  Host& target = host(struck_[index].host);
  const std::size_t link = struck_[index].link;
  switch (fault.kind) {
    case FaultKind::kPause: return target.resume();
    case FaultKind::kStallOneWay: return network_.heal(link, fault.direction);
    case FaultKind::kStallBothWays:
      network_.heal(link, Direction::kToBackup);
      return network_.heal(link, Direction::kToPrimary);
    case FaultKind::kDelay: return network_.set_extra_delay(link, 0ms);
    case FaultKind::kLoss: return network_.set_weather(link, Weather::kLoss, false);
    case FaultKind::kRepetition: return network_.set_weather(link, Weather::kRepetition, false);
    case FaultKind::kReordering: return network_.set_weather(link, Weather::kReordering, false);
    case FaultKind::kSlowDisk: return target.set_slow_disk(false);
    case FaultKind::kArbiterUnreachable: --arbiter_unreachable_[fault.site]; return;
    case FaultKind::kArbiterDown:
      for (int& faults : arbiter_unreachable_) --faults;
      return;
    case FaultKind::kArbiterSlow: --arbiter_slow_; return;
    default: return;
  }
}

void World::cut_off(Host& host, bool silently) {
  for (const std::size_t link : host.links()) {
    if (silently) {
      network_.silence(link);
    } else {
      network_.close(link, host.sends());
    }
  }
  host.crash();
}

void World::calm() {
  if (trace_) note("calm: every fault ends");
  for (std::size_t link = 0; link < network_.links(); ++link) {
    network_.heal(link, Direction::kToBackup);
    network_.heal(link, Direction::kToPrimary);
    network_.set_extra_delay(link, 0ms);
    network_.clear(link);
  }
  std::ranges::fill(arbiter_unreachable_, 0);
  arbiter_slow_ = 0;
  calm_ = true;
  for (std::size_t site = 0; site < sites_.size(); ++site) {
    at(site).set_slow_disk(false);
    at(site).resume();
  }
  released_at_calm_.resize(kMaxReplicas);
  for (std::size_t id = 0; id < replicas_.size(); ++id) released_at_calm_[id] = replicas_[id]->released();
  schedule(now_ + kCheckInterval, EventKind::kCheckProgress);
}

PrimaryHost* World::leader() const {
  PrimaryHost* leads = nullptr;
  for (std::size_t site = 0; site < sites_.size(); ++site) {
    PrimaryHost* primary = primary_at(site);
    if (primary == nullptr || primary->is_over()) continue;
    if (leads == nullptr || primary->leads_in() > leads->leads_in()) leads = primary;
  }
  return leads;
}

bool World::came_to_a_good_end(std::string& what_lacks) const {
  const PrimaryHost* leads = leader();
  for (std::size_t site = 0; site < sites_.size(); ++site) {
    if (primary_at(site) != nullptr && primary_at(site) != leads && !at(site).is_over()) {
      what_lacks = fmt::format("replica {} does not know that it was replaced", at(site).id().value);
      return false;
    }
    const BackupHost* backup = backup_at(site);
    if (backup == nullptr || backup->is_over()) continue;
    // Waiting for another primary, or protecting this one.
    if (backup->state() == BackupReplica::State::kIdle || (leads != nullptr && &backup->primary() == leads)) continue;
    what_lacks = fmt::format("replica {} is left {}", backup->id().value, to_string(backup->state()));
    return false;
  }
  if (leads != nullptr) {
    const std::uint64_t flowed = leads->released() - released_at_calm_[leads->id().value];
    what_lacks = fmt::format("replica {} leads, is {}, and let out {} outputs", leads->id().value,
                             leads->is_protected() ? "protected" : "not protected", flowed);
    return leads->is_protected() && flowed >= kOutputsThatFlow;
  }
  const Host& last = host(arbiter_.owner(arbiter_.last()));
  what_lacks = fmt::format("replica {} has the last term and does not lead", last.id().value);
  if (last.alive() && !last.stopped_by_operator()) return false;
  // The machine is lost. Only when nobody is left that the last term's claim named: each such replica may claim the next.
  for (const HostId member : arbiter_.members()) {
    const auto* backup = dynamic_cast<const BackupHost*>(&host(member));
    if (backup != nullptr && (!backup->could_lead())) continue;
    what_lacks = fmt::format("replica {} is alive, and might have led", member.value);
    return false;
  }
  return true;
}

Outcome World::outcome() const {
  Outcome outcome = seen_;
  outcome.machine_lost = leader() == nullptr && !host(arbiter_.owner(arbiter_.last())).stopped_by_operator();
  return outcome;
}

// The trace.

void World::note(const std::string& what) {
  trace_(fmt::format("{:>10.3f} ms  -- {}", static_cast<double>(now_.count()) / 1e6, what));
}

void World::trace_step(const Host& host, const std::string& step, const std::vector<std::string>& effects) {
  const auto routine = [](const std::string& text) { return text.find("Heartbeat(") != std::string::npos; };
  if ((step == "Tick" || routine(step)) && std::all_of(effects.begin(), effects.end(), routine)) return;
  const char* role = dynamic_cast<const PrimaryHost*>(&host) != nullptr ? "primary" : "backup ";
  const std::string who = fmt::format("{} {} at {}", role, host.id().value, host.site());
  std::string line = fmt::format("{:>10.3f} ms  {}  {}", static_cast<double>(now_.count()) / 1e6, who, step);
  for (std::size_t e = 0; e < effects.size(); ++e) line += (e == 0 ? "  ->  " : ", ") + effects[e];
  trace_(line);
}

}  // namespace pollux::sim
