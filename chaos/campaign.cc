#include "chaos/campaign.h"

#include <fmt/format.h>
#include <sys/stat.h>

#include <algorithm>
#include <csignal>
#include <fstream>
#include <future>
#include <sstream>
#include <thread>

#include "base/error.h"
#include "chaos/acknowledged_writes.h"
#include "chaos/claims.h"
#include "chaos/journal.h"
#include "chaos/linearizability.h"
#include "control/client.h"

namespace pollux::chaos {
namespace {

using std::chrono::milliseconds;
using Clock = Stopwatch::Clock;

constexpr const char* kBridgeIp = "10.0.0.1";
constexpr const char* kGuestIp = "10.0.0.2";
constexpr std::uint16_t kServerPort = 7000;
constexpr std::size_t kMaxViolations = 64;
constexpr std::chrono::seconds kStartLimit{60};  // and for the end
constexpr std::size_t kLogTail = 12;  // lines of evidence

double seconds(Moment moment) { return std::chrono::duration<double>(moment).count(); }

std::string content_of(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::ostringstream bytes;
  bytes << file.rdbuf();
  return bytes.str();
}

std::string last_lines(const std::string& text) {
  std::size_t at = text.size();
  for (std::size_t i = 0; i <= kLogTail && at != std::string::npos && at > 0; ++i) at = text.rfind('\n', at - 1);
  return at == std::string::npos || at == 0 ? text : text.substr(at + 1);
}

DiskFault disk_fault_of(FaultKind kind) {
  switch (kind) {
    case FaultKind::kDiskError: return DiskFault::kError;
    case FaultKind::kDiskFull: return DiskFault::kFull;
    case FaultKind::kDiskReadError: return DiskFault::kReadError;
    case FaultKind::kDiskSlow: return DiskFault::kSlow;
    default: return DiskFault::kNone;
  }
}

}  // namespace

Campaign::Campaign(CampaignOptions options) : options_(std::move(options)), roles_(2) {
  record_.seed = options_.schedule.seed;
  record_.duration = options_.schedule.duration;
  record_.kinds = options_.schedule.kinds;
  record_.command = options_.command;
  record_.hosts = {"castor", "pollux"};
  arbiter_ = (options_.folder / "arbiter").string();
}

Campaign::~Campaign() { set_arbiter_reachable(true); }

RunRecord Campaign::run() {
  begin();
  try {
    run_faults();
    drain();
  } catch (const Over&) {
    workload_->stop();
  }
  for (const auto& host : hosts_) kill(*host);
  judge();
  return std::move(record_);
}

void Campaign::begin() {
  std::filesystem::create_directories(arbiter_);
  topology_ = std::make_unique<Topology>(
      kBridgeIp, std::vector{Host::tap_name(record_.hosts[0]), Host::tap_name(record_.hosts[1])});
  ReplicaSettings settings{.pollux = options_.pollux,
                           .guest = options_.guest,
                           .disk_faults = options_.disk_faults,
                           .arbiter = options_.without_arbiter ? "none" : "file:" + arbiter_,
                           .guest_ip = kGuestIp,
                           .timeout_ms = options_.timeout_ms,
                           .epoch_ms = options_.epoch_ms,
                           .strategy = options_.strategy};
  for (std::size_t number = 0; number < record_.hosts.size(); ++number) {
    hosts_.push_back(std::make_unique<Host>(number, record_.hosts[number], options_.folder, settings, watch_, roles_));
  }
  capture_ = std::make_unique<FrameCapture>(std::vector{hosts_[0]->tap(), hosts_[1]->tap()}, kServerPort, watch_);
  hosts_[0]->start_primary(*hosts_[1]);
  hosts_[1]->start_backup(*hosts_[0]);
  const auto limit = Clock::now() + kStartLimit;
  if (!wait(limit, [&] { return is_protected(watch_.start()); })) {
    throw Error(fmt::format("the machine was not protected within {} s: see the logs in {}", kStartLimit.count(),
                            options_.folder.string()));
  }
  repairing_ = true;
  workload_ = std::make_unique<Workload>(
      WorkloadOptions{.server = {kGuestIp, kServerPort}, .seed = options_.schedule.seed, .clients = options_.clients}, watch_,
      history_);
  if (!wait(limit, [&] { return history_.answered_count() > 0; })) throw Error("the guest does not answer its clients");
}

void Campaign::run_faults() {
  const std::vector<Fault> schedule = make_schedule(options_.schedule);
  record_.planned = schedule.size();
  const Moment zero = watch_.now();  // the schedule's beginning
  for (const Fault& fault : schedule) {
    if (options_.interrupted && options_.interrupted()) break;
    wait_for(kSettle);
    const auto planned = watch_.start() + std::chrono::duration_cast<Clock::duration>(zero + fault.at);
    wait(planned, [&] { return options_.interrupted && options_.interrupted(); });
    const auto before = leader();
    if (!before || !is_protected(watch_.start())) {
      violate("protection", "protection was lost while nothing was harmed");
      throw Over{};
    }
    record_.faults.push_back({});
    FaultRecord& record = record_.faults.back();
    record.fault = fault;
    record.struck = watch_.now();
    strike(record);
    record.over = watch_.now();
    recover(record, *before);
    std::string result = fmt::format("{}/{}  {:8.3f} s  {}", fault.number, schedule.back().number, seconds(record.struck),
                                     to_text(fault).substr(to_text(fault).find("  ") + 2));
    if (record.host) result += ", on " + record_.hosts[*record.host];
    if (record.failover) result += fmt::format(": failover, {:.0f} ms to the first answer", 1000 * seconds(record.failover->time));
    if (record.protected_again) result += fmt::format("; protected again after {:.1f} s", seconds(*record.protected_again - record.struck));
    if (!record.note.empty()) result += "; " + record.note;
    say(result);
  }
}

void Campaign::strike(FaultRecord& record) {
  const Fault& fault = record.fault;
  const std::size_t primary = leader().value_or(0);
  const std::size_t target = fault.target == FaultTarget::kBackup ? 1 - primary : primary;
  if (fault.target != FaultTarget::kLink) record.host = target;
  repairing_ = false;
  switch (fault.kind) {
    case FaultKind::kKill: kill(*hosts_[target]); break;
    case FaultKind::kPause:
      hosts_[target]->replica().process().send_signal(SIGSTOP);
      wait_for(fault.lasts);
      if (hosts_[target]->runs()) hosts_[target]->replica().process().send_signal(SIGCONT);
      break;
    case FaultKind::kPartition: set_links({.cut = true}); break;
    case FaultKind::kOneWay:
      set_links({.cut = true}, fault.direction == Direction::kForward, fault.direction == Direction::kBackward);
      break;
    case FaultKind::kLatency: set_links({.latency = fault.latency}); break;
    case FaultKind::kBandwidth: set_links({.bytes_per_second = fault.bytes_per_second}); break;
    case FaultKind::kCorrupt: hosts_[primary]->link().corrupt_next(fault.direction); break;
    case FaultKind::kDisconnect: hosts_[primary]->link().disconnect(); break;
    case FaultKind::kArbiter: strike_arbiter(record); break;
    case FaultKind::kKillInPromotion: strike_in_promotion(record, *hosts_[primary]); break;
    case FaultKind::kKillInSync: strike_in_sync(record); break;
    case FaultKind::kDiskError:
    case FaultKind::kDiskFull:
    case FaultKind::kDiskReadError:
    case FaultKind::kDiskSlow: strike_disk(record, *hosts_[target]); break;
    case FaultKind::kMemory: strike_memory(record, *hosts_[target]); break;
    case FaultKind::kSwitchover:
    case FaultKind::kKillInSwitchover: strike_switchover(record, *hosts_[primary]); break;
  }
  if (fault.target == FaultTarget::kLink && fault.kind != FaultKind::kArbiter) {
    wait_for(fault.lasts);
    heal_links();
  }
  repairing_ = true;
}

void Campaign::strike_arbiter(FaultRecord& record) {
  set_arbiter_reachable(false);
  if (record.fault.target == FaultTarget::kLink) {
    set_links({.cut = true});
  } else {
    kill(*hosts_[*record.host]);
  }
  wait_for(record.fault.lasts);
  set_arbiter_reachable(true);
  heal_links();
}

void Campaign::strike_in_sync(FaultRecord& record) {
  Host& host = *hosts_[*record.host];
  kill(host);
  host.start_backup(other_than(*record.host));
  const bool began = wait(Clock::now() + options_.recovery_limit, [&] { return !host.runs() || host.replica().logged("full sync begins"); });
  if (!began || !host.runs()) {
    record.note = "no full sync began";
    return;
  }
  // Stopped, so that it goes no further while its log is read.
  const bool complete = !host.replica().process().stop() || host.replica().logged("full sync complete");
  kill(host);
  if (complete) record.note = "the sync was over before the kill";
}

// The machine is lost then: who has the term is gone, and nobody else may lead in it (docs/arbitration.md).
void Campaign::strike_in_promotion(FaultRecord& record, Host& primary) {
  Host& heir = other_than(*record.host);
  const std::size_t terms_before = count_claims(arbiter_);
  kill(primary);
  const auto decided = [&] { return !heir.runs() || count_claims(arbiter_) > terms_before; };
  if (!wait(Clock::now() + options_.recovery_limit, decided, milliseconds(1)) || !heir.runs()) {
    record.note = "the backup claimed no term";  // recover() finds out what became of the machine
    return;
  }
  wait_for(record.fault.after);
  kill(heir);
  boot_anew(record, heir);
}

// From the disk of the one that led last, or was about to: it has every write that was acknowledged.
void Campaign::boot_anew(FaultRecord& record, Host& host) {
  for (const std::string& found : check_journal(history_.copy(), content_of(host.disk()), true)) {
    violate("journal", fmt::format("after both hosts were lost, on {}: {}", host.disk(), found));
  }
  record.booted_anew = true;
  record.note = "both were lost: booted anew from the disk of " + host.name();
  Host& other = *hosts_[&host == hosts_[0].get() ? 1 : 0];
  host.start_primary(other, ++machine_);
  other.start_backup(host);
}

// The disk is well again before the host starts another replica.
void Campaign::strike_disk(FaultRecord& record, Host& host) {
  const Fault& fault = record.fault;
  host.treatment().disk_harmed = true;
  host.disk_faults().set(disk_fault_of(fault.kind), fault.latency);
  wait_for(fault.lasts);
  host.disk_faults().set(DiskFault::kNone);
  if (!host.runs()) record.note = "it gave up";
}

void Campaign::strike_memory(FaultRecord& record, Host& host) {
  host.treatment().memory_harmed = true;
  for (const auto& either : hosts_) either->treatment().may_diverge = true;
  host.replica().process().refuse_memory(true);
  wait_for(record.fault.lasts);
  if (host.runs()) {
    host.replica().process().refuse_memory(false);
  } else {
    record.note = "it gave up";
  }
}

// The backup, once it has the term, is the machine, unprotected: to kill it would prove nothing.
void Campaign::kill_in_switchover(FaultRecord& record, std::size_t terms_before) {
  Host& host = *hosts_[*record.host];
  if (!host.runs()) return;
  // So that it wins nothing while the arbiter is looked at: a claim that was on its way is there when it stands still.
  if (!host.replica().process().stop()) return;
  if (record.fault.target == FaultTarget::kBackup && count_claims(arbiter_) > terms_before) {
    host.replica().process().send_signal(SIGCONT);
    record.note = "it led already, and was spared";
  } else {
    kill(host);
  }
}

void Campaign::strike_switchover(FaultRecord& record, Host& primary) {
  primary.treatment().told_to_hand_over = true;
  const std::size_t terms_before = count_claims(arbiter_);
  auto answered = std::async(std::launch::async, [path = primary.replica().control_path()] {
    control::Request request;
    request.command = control::Command::kSwitchover;
    std::string answer;
    try {
      control::ask(path, request, [&](const std::string& line) {
        answer = line;
        return false;
      });
    } catch (const Error& error) {
      answer = error.what();
    }
    return answer;
  });
  if (record.fault.kind == FaultKind::kKillInSwitchover) {
    wait_for(record.fault.after);
    kill_in_switchover(record, terms_before);
  }
  const bool ended = wait(Clock::now() + options_.recovery_limit, [&] { return answered.wait_for(milliseconds(0)) == std::future_status::ready; });
  if (!ended) violate("switchover", fmt::format("no answer within {} s", options_.recovery_limit.count()));
  // It may be refused (the backup was killed before): then nothing has changed.
}

void Campaign::recover(FaultRecord& record, std::size_t leader_before) {
  const auto over = Clock::now();
  const auto deadline = over + options_.recovery_limit;
  const std::size_t answered = history_.answered_count();
  const bool again = wait(deadline, [&] { return is_protected(over) && history_.answered_count() > answered; });
  const auto after = leader();
  if (after && *after != leader_before && !record.booted_anew && wait(deadline, [&] { return capture_->first_answer(*after, record.struck).has_value(); })) {
    const Moment answer = *capture_->first_answer(*after, record.struck);
    record.failover = Failover{leader_before, *after, answer - record.struck};
  }
  if (again) {
    record.protected_again = watch_.now();
    return;
  }
  std::string evidence = fmt::format("{} s after \"{}\" the machine is {}", options_.recovery_limit.count(), to_text(record.fault),
                                     history_.answered_count() == answered ? "silent" : "not protected");
  for (const auto& host : hosts_) {
    evidence += fmt::format("\n  {}: {}", host->name(), host->runs() ? "\n" + last_lines(host->replica().log()) : "nothing runs");
  }
  violate("recovery", evidence);
  throw Over{};
}

void Campaign::drain() {
  say("all faults are over: the last answers and reads, then both disks");
  repairing_ = false;
  if (!workload_->finish(options_.recovery_limit)) {
    violate("answers", fmt::format("not every request was answered within {} s after the last fault", options_.recovery_limit.count()));
  }
  const auto last = leader();
  if (!last) return violate("drain", "no host leads the machine in the end");
  for (const auto& host : hosts_) host->treatment().told_to_end = true;
  hosts_[*last]->replica().process().send_signal(SIGTERM);
  const auto limit = Clock::now() + kStartLimit;
  if (!wait(limit, [&] { return !hosts_[0]->runs() && !hosts_[1]->runs(); })) {
    return violate("drain", "the replicas did not end when the primary was told to");
  }
  drained_ = true;
  if (content_of(hosts_[0]->disk()) != content_of(hosts_[1]->disk())) {
    violate("disks", fmt::format("after the drain {} and {} differ", hosts_[0]->disk(), hosts_[1]->disk()));
  }
}

void Campaign::judge() {
  record_.ended = watch_.now();
  capture_->stop();
  record_.history = history_.copy();
  record_.roles = roles_.spans(record_.ended);
  record_.epochs = roles_.samples();
  for (const std::string& error : workload_->errors()) violate("answers", error);
  for (const NotLinearizable& found : check_linearizable(record_.history)) violate("linearizability", found.text());
  for (const std::string& found : check_counters(record_.history)) violate("acknowledged writes", found);
  if (drained_) {
    for (const std::string& found : check_journal(record_.history, content_of(hosts_[0]->disk()))) violate("journal", found);
  }
  std::vector<Incarnation> incarnations;
  for (const auto& host : hosts_) {
    for (Incarnation& incarnation : host->incarnations()) incarnations.push_back(std::move(incarnation));
  }
  std::sort(incarnations.begin(), incarnations.end(), [](const auto& a, const auto& b) { return a.started < b.started; });
  const std::vector<AnswerFrame> frames = capture_->frames();
  record_.frames = frames.size();
  for (const std::string& found : check_answer_frames(frames, incarnations)) violate("one answers per term", found);
  if (capture_->lost() > 0) violate("capture", fmt::format("{} frames were not captured: it proves nothing", capture_->lost()));
}

template <class Condition>
bool Campaign::wait(Clock::time_point deadline, Condition condition, milliseconds tick) {
  for (;;) {
    tend();
    if (condition()) return true;
    const auto now = Clock::now();
    if (now >= deadline) return false;
    std::this_thread::sleep_until(std::min<Clock::time_point>(deadline, now + tick));
  }
}

void Campaign::wait_for(milliseconds time) {
  (void)wait(Clock::now() + time, [] { return false; });
}

void Campaign::tend() {
  for (const auto& host : hosts_) {
    if (const auto end = host->reap()) judge_end(*host, *end);
  }
  if (!repairing_) return;
  if (!hosts_[0]->runs() && !hosts_[1]->runs()) {
    violate("machine lost", "both replicas have ended");
    throw Over{};
  }
  for (std::size_t number = 0; number < hosts_.size(); ++number) {
    if (!hosts_[number]->runs()) hosts_[number]->start_backup(other_than(number));
  }
}

void Campaign::kill(Host& host) {
  if (const auto end = host.kill()) judge_end(host, *end);
}

void Campaign::judge_end(Host& host, const ReplicaEnd& end) {
  for (const std::string& found : check_end(end, host.treatment())) {
    violate("replicas", fmt::format("{}: {}", host.incarnations().back().name, found));
  }
}

bool Campaign::is_protected(Clock::time_point told_after) const {
  const auto leading = leader();
  if (!leading || !hosts_[1 - *leading]->runs()) return false;
  const Host& primary = *hosts_[*leading];
  const Host& backup = *hosts_[1 - *leading];
  const auto recent = [&](const Host& host) { return const_cast<Host&>(host).replica().status_time() > told_after; };
  return primary.status().is_protected() && backup.status().state == "protecting" && recent(primary) && recent(backup);
}

std::optional<std::size_t> Campaign::leader() const {
  std::optional<std::size_t> found;
  for (std::size_t number = 0; number < hosts_.size(); ++number) {
    const ReplicaStatus status = hosts_[number]->status();
    if (status.leads() && (!found || status.term > hosts_[*found]->status().term)) found = number;
  }
  return found;
}

void Campaign::set_links(const LinkConditions& conditions, bool forward, bool backward) {
  for (const auto& host : hosts_) {
    if (forward) host->link().set(Direction::kForward, conditions);
    if (backward) host->link().set(Direction::kBackward, conditions);
  }
}

void Campaign::heal_links() {
  for (const auto& host : hosts_) host->link().heal();
}

void Campaign::set_arbiter_reachable(bool reachable) {
  // Replicas have no right to pass by a directory's mode, whoever runs them (ChildProcess).
  (void)::chmod(arbiter_.c_str(), reachable ? 0700 : 0);
}

void Campaign::violate(const std::string& check, const std::string& evidence) {
  if (record_.violations.size() == kMaxViolations) return;
  record_.violations.push_back({check, evidence});
  say(fmt::format("VIOLATION of {}: {}", check, evidence));
}

void Campaign::say(const std::string& line) const {
  if (options_.progress) options_.progress(line);
}

}  // namespace pollux::chaos
