#include "cli/replica_life.h"

#include <spdlog/spdlog.h>

#include <CLI/CLI.hpp>
#include <utility>

#include "base/error.h"
#include "cli/exit_code.h"
#include "cli/host_options.h"
#include "cli/replica_control.h"
#include "vmm/gates/pass_through.h"

namespace pollux::cli {

void LifeOptions::add_to(CLI::App& app) {
  app.add_option("--control", control_path_, "socket for pollux ctl, which only its owner may use")->type_name("PATH");
  app.add_option("--rejoin", rejoin_,
                 "HOST:PORT at which another replica may lead: when this one is fenced or has handed over it joins there "
                 "as a backup, instead of ending; up to three")
      ->type_name("ADDR");
}

// Which key belongs to which address is not said: each is tried.
std::vector<backup::JoinPoint> LifeOptions::rejoin(const std::vector<protocol::session::PublicKey>& keys) const {
  constexpr std::size_t kMaxAddresses = 3;
  if (rejoin_.size() > kMaxAddresses) throw UsageError("--rejoin: expected at most 3 addresses");
  std::vector<backup::JoinPoint> points;
  for (const std::string& text : rejoin_) {
    const auto address = for_option("--rejoin", [&] { return protocol::parse_address(text); });
    for (const auto& key : keys) points.push_back({address, key});
  }
  return points;
}

std::unique_ptr<control::Server> LifeOptions::open_control(control::Desk& desk) const {
  if (control_path_.empty()) return nullptr;
  return for_option("--control", [&] { return std::make_unique<control::Server>(control_path_, desk); });
}

ReplicaLife::ReplicaLife(LifePlan plan, const protocol::session::SecretKey& key, vmm::Backends& backends,
                         StopSwitch& stops, control::Desk& desk)
    : plan_(std::move(plan)), key_(key), backends_(backends), stops_(stops), desk_(desk) {}

int ReplicaLife::lead(primary::PrimaryOptions options, const primary::Primary::MakeMachine& make_machine,
                      const SignalWatcher& signals) {
  const Ended ended = run_primary(std::move(options), make_machine, signals);
  return ended ? *ended : follow_others(signals);
}

int ReplicaLife::follow(std::unique_ptr<backup::Backup> backup, const SignalWatcher& signals) {
  const Ended ended = run_backup(*backup, signals);
  backup.reset();  // its address is free for the next
  return ended ? *ended : follow_others(signals);
}

int ReplicaLife::follow_others(const SignalWatcher& signals) {
  for (;;) {
    spdlog::info("joining the replica that leads now, as its backup");
    backup::Backup backup(plan_.as_backup, key_);
    if (const Ended ended = run_backup(backup, signals)) return *ended;
  }
}

ReplicaLife::Ended ReplicaLife::run_primary(primary::PrimaryOptions options,
                                            const primary::Primary::MakeMachine& make_machine,
                                            const SignalWatcher& signals) {
  primary::Primary primary(std::move(options));
  const StopSwitch::Use stop(stops_, [&] { primary.stop(); });
  PrimaryControl control(primary, [this] { stops_.stop(); });
  const control::Desk::Use use(desk_, control);
  try {
    const vmm::MachineExit exit = primary.run(key_, backends_, make_machine);
    if (!primary.handed_over()) return exit_code_of(exit, signals.received());
  } catch (const primary::FencedError& error) {
    if (!may_rejoin()) throw;
    spdlog::error("{}", error.what());
    return std::nullopt;
  }
  if (may_rejoin()) return std::nullopt;
  spdlog::info("the machine is led elsewhere now");
  return stops_.stopped() ? exit_code_of({vmm::ExitReason::kRequested, {}}, signals.received()) : kHandedOverExit;
}

// Leads the machine in the term it won, until the machine ends.
ReplicaLife::Ended ReplicaLife::run_promoted(backup::Promotion promotion, const SignalWatcher& signals) {
  vmm::PassThroughInput input;
  std::optional<backup::PromotedOutput> output;
  std::optional<backup::FailoverReport> report;
  primary::PrimaryOptions options = plan_.as_primary;
  options.listener = promotion.listener;
  options.strategy = promotion.lockstep() ? protocol::Strategy::kLockstep : options.strategy;
  options.succession = primary::Succession{promotion.vm, promotion.term, promotion.timeline.epoch};
  options.on_turn = [&](const vmm::Machine& machine) { report->look(promotion.timeline, machine); };
  const Ended ended = run_primary(
      std::move(options),
      [&](vmm::OutputGate& gate) {
        output.emplace(gate);
        report.emplace(*output, backends_.nic_count() > 0, plan_.timeline_path);
        return promotion.restore(backends_, input, *output);
      },
      signals);
  report->finish(promotion.timeline);
  return ended;
}

ReplicaLife::Ended ReplicaLife::run_backup(backup::Backup& backup, const SignalWatcher& signals) {
  backup::BackupEnd end;
  {
    const StopSwitch::Use stop(stops_, [&] { backup.stop(); });
    BackupControl control(backup, [this] { stops_.stop(); });
    const control::Desk::Use use(desk_, control);
    end = backup.run(backends_);
  }
  if (end.promotion) return run_promoted(std::move(*end.promotion), signals);
  if (end.fenced && may_rejoin()) {
    spdlog::error("{}", end.reason);
    return std::nullopt;
  }
  if (end.failed) {
    spdlog::error("{}", end.reason);
    return kFailureExit;
  }
  spdlog::info("{}", end.reason);
  return signals.received() == 0 ? 0 : 128 + signals.received();
}

}  // namespace pollux::cli
