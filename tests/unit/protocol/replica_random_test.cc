// Whatever a peer says, and in whatever order, the machines' invariants hold: a violation ends the
// protection, never the process. The engine around each machine behaves; seeds are printed with a failure.
#include <algorithm>
#include <deque>
#include <optional>
#include <random>
#include <utility>

#include "protocol/backup_replica.h"
#include "protocol/primary_replica.h"
#include "script.h"

namespace pollux::protocol {
namespace {

class Random {
 public:
  explicit Random(std::uint64_t seed) : engine_(seed) {}
  std::uint64_t below(std::uint64_t bound) { return engine_() % bound; }
  bool chance(std::uint64_t one_in) { return below(one_in) == 0; }

 private:
  std::mt19937_64 engine_;
};

// A message any peer might send, near the epochs at hand.
Message any_message(Random& random, std::uint64_t epoch) {
  const EpochId near{epoch + random.below(3) - (epoch > 0 ? random.below(2) : 0)};
  switch (random.below(19)) {
    case 0: return Hello{};
    case 1: return Welcome{};
    case 2: return DiskDigestRequest{{0}, 0, 1};
    case 3: return DiskDigests{{0}, 0, 1};
    case 4: return SyncPages{{{{1}, 1, false}}};
    case 5: return SyncEnd{near, random.below(2), 0, 0, 8};
    case 6: return EpochOpen{near};
    case 7: return EpochPages{near, {{{1}, 1, false}}};
    case 8: return EpochDiskWrites{near, {{{0}, DiskOperationKind::kFlush, 0, 0}}};
    case 9: return EpochClose{near, random.below(2), 0, random.below(2), random.chance(2), 8};
    case 10: return Ack{near};
    case 11: return Heartbeat{1};
    case 12: return NewTerm{{random.below(4)}};
    case 13: return SyncMark{random.below(2)};
    case 14: return random.chance(2) ? Message(EpochInputs{near, 8}) : Message(EpochDigest{near, 8});
    case 15: return EpochOpen{near, RecordKind::kInputs};
    case 16: return Executed{near};
    case 17: return Divergence{near, 0, false};
    default: return random.chance(2) ? Message(Goodbye{}) : Message(Refuse{"no"});
  }
}

// The message a primary that keeps the rules sends next, most of the time; else any.
class LoosePrimary {
 public:
  explicit LoosePrimary(Strategy strategy) : strategy_(strategy) {}
  Message next(Random& random, const BackupReplica& backup) {
    if (random.chance(12)) return any_message(random, backup.last_whole().value);
    if (backup.state() == BackupReplica::State::kAwaitingHello) {
      Hello hello;
      hello.config_digest = digest_config({});
      hello.disk_bytes = {512};
      hello.strategy = strategy_;
      return hello;
    }
    if (backup.state() != BackupReplica::State::kProtecting) return SyncEnd{};
    const EpochId epoch = backup.last_whole().next();
    const bool flushed = random.chance(3);
    if (pieces_ == 0) inputs_ = strategy_ == Strategy::kLockstep && !backup.diverged();
    const int piece = pieces_++;
    if (piece == 0) return EpochOpen{epoch, inputs_ ? RecordKind::kInputs : RecordKind::kPages};
    if (inputs_ && piece == 1) return EpochInputs{epoch, 40};
    if (inputs_ && piece == 2) return EpochDigest{epoch, 72};
    pieces_ = 0;
    clock_ += std::chrono::nanoseconds(random.below(1000));
    return inputs_ ? EpochClose{epoch, 0, 0, 0, flushed, 0, 40, 72, clock_} : EpochClose{epoch, 0, 0, 0, flushed, 8};
  }

 private:
  const Strategy strategy_;
  bool inputs_ = false;
  int pieces_ = 0;  // of the open record
  std::chrono::nanoseconds clock_{};
};

void run_backup(std::uint64_t seed) {
  Random random(seed);
  Clock clock;
  BackupReplica machine(BackupConfig{});
  LoosePrimary primary(seed % 2 == 0 ? Strategy::kCopy : Strategy::kLockstep);
  std::deque<backup::Effect> work;
  const auto take = [&](const BackupReplica::Effects& effects) {
    work.insert(work.end(), effects.begin(), effects.end());
  };
  std::optional<EpochId> acked;
  take(machine.step(backup::LinkUp{}, clock.now()));
  for (int i = 0; i < 200; ++i) {
    clock.advance(std::chrono::milliseconds(random.below(random.chance(50) ? 2000 : 20)));
    // The engine answers in order, sooner or later.
    if (!work.empty() && random.chance(2)) {
      const backup::Effect effect = work.front();
      work.pop_front();
      if (std::holds_alternative<backup::ExamineHello>(effect)) {
        take(machine.step(backup::HelloAccepted{}, clock.now()));
      } else if (const auto* apply = std::get_if<backup::ApplyEpoch>(&effect);
                 apply != nullptr && machine.lockstep() && apply->epoch > EpochId{0} && random.chance(20)) {
        std::erase_if(work, [](const backup::Effect& waiting) {
          return std::holds_alternative<backup::ApplyEpoch>(waiting) || std::holds_alternative<backup::MakeDurable>(waiting);
        });
        take(machine.step(backup::Diverged{apply->epoch, 3, false}, clock.now()));
      } else if (apply != nullptr) {
        take(machine.step(backup::EpochApplied{apply->epoch}, clock.now()));
      } else if (const auto* make = std::get_if<backup::MakeDurable>(&effect)) {
        take(machine.step(backup::EpochDurable{make->epoch}, clock.now()));
      } else if (const auto* claim = std::get_if<backup::ClaimTerm>(&effect)) {
        const std::uint64_t answer = random.below(4);
        if (answer == 0) take(machine.step(backup::TermLost{claim->term}, clock.now()));
        if (answer == 1) take(machine.step(backup::ArbiterUnreachable{}, clock.now()));
        if (answer > 1) take(machine.step(backup::TermWon{claim->term}, clock.now()));
      } else if (const auto* promote = std::get_if<backup::Promote>(&effect)) {
        ASSERT_TRUE(!acked || promote->epoch >= *acked) << "an acknowledged epoch is lost";
        ASSERT_FALSE(machine.diverged());
      } else if (const auto* send = std::get_if<backup::Send>(&effect)) {
        if (const auto* ack = std::get_if<Ack>(&send->message)) {
          ASSERT_TRUE(!acked || ack->epoch > *acked);
          acked = ack->epoch;
        }
      }
    } else if (random.chance(60)) {
      take(machine.step(backup::LinkDown{"x"}, clock.now()));
    } else if (random.chance(5)) {
      take(machine.step(backup::Tick{}, clock.now()));
    } else {
      take(machine.receive(primary.next(random, machine), clock.now()));
    }
  }
}

void run_primary(std::uint64_t seed) {
  Random random(seed);
  Clock clock;
  PrimaryConfig config;
  config.backups = random.below(kMaxBackups + 1);
  config.closed = {random.below(3)};
  config.hello.strategy = seed % 2 == 0 ? Strategy::kCopy : Strategy::kLockstep;
  PrimaryReplica machine(config);
  EpochId committed = config.closed;
  std::vector<BackupId> to_sync;
  std::optional<Term> claimed;
  std::vector<BackupId> to_heal;
  const auto take = [&](const PrimaryReplica::Effects& effects) {
    for (const primary::Effect& effect : effects) {
      if (const auto* heal = std::get_if<primary::Heal>(&effect)) to_heal.push_back(heal->backup);
      if (const auto* sync = std::get_if<primary::StartFullSync>(&effect)) to_sync.push_back(sync->backup);
      if (const auto* claim = std::get_if<primary::ClaimTerm>(&effect)) {
        ASSERT_FALSE(claimed) << "one claim at a time";
        claimed = claim->term;
      }
      if (const auto* commit = std::get_if<primary::Committed>(&effect)) {
        ASSERT_GT(commit->epoch, committed);
        ASSERT_LE(commit->epoch, machine.closed());
        committed = commit->epoch;
      }
    }
  };
  for (std::uint32_t b = 0; b < config.backups; ++b) take(machine.step(primary::LinkUp{{b}}, clock.now()));
  for (int i = 0; i < 200; ++i) {
    clock.advance(std::chrono::milliseconds(random.below(20)));
    if ((machine.next_backup().value == 0 || random.chance(20)) && machine.alive() < kMaxBackups) {
      const BackupId joiner = machine.next_backup();
      take(machine.step(primary::BackupJoined{joiner}, clock.now()));
      ASSERT_EQ(machine.next_backup().value, joiner.value + 1);
      if (!random.chance(5)) take(machine.step(primary::LinkUp{joiner}, clock.now()));
      continue;
    }
    const BackupId from{static_cast<std::uint32_t>(random.below(machine.next_backup().value))};
    if (claimed && random.chance(4)) {
      const Term term = *std::exchange(claimed, std::nullopt);
      const std::uint64_t answer = random.below(8);
      if (answer == 0) take(machine.step(primary::TermLost{term}, clock.now()));
      if (answer == 1) take(machine.step(primary::ArbiterUnreachable{}, clock.now()));
      if (answer > 1) take(machine.step(primary::TermWon{term}, clock.now()));
    } else if (!to_sync.empty() && random.chance(3)) {
      const BackupId synced = to_sync.back();
      to_sync.pop_back();
      const bool unprotected = machine.unprotected();
      const bool dropped = machine.state(synced) == PrimaryReplica::BackupState::kDropped;
      const auto effects = machine.step(primary::SyncFinished{synced, machine.closed()}, clock.now());
      const bool replicating = std::ranges::count(effects, primary::Effect(primary::Replicating{})) == 1;
      ASSERT_EQ(replicating, unprotected && !dropped);
      ASSERT_EQ(machine.unprotected(), unprotected && dropped);
      take(effects);
    } else if (random.chance(4)) {
      for (const BackupId backup : std::exchange(to_heal, {})) {
        take(machine.step(primary::HealBegun{backup, machine.closed().next()}, clock.now()));
      }
      take(machine.step(primary::EpochClosed{machine.closed().next(), random.chance(3)}, clock.now()));
    } else if (random.chance(6)) {
      take(machine.step(primary::EpochDurable{machine.committed()}, clock.now()));
    } else if (random.chance(100)) {
      take(machine.step(primary::LinkDown{from, "x"}, clock.now()));
    } else if (random.chance(10)) {
      take(machine.step(primary::Tick{}, clock.now()));
    } else if (random.chance(40)) {
      take(machine.receive(from, any_message(random, machine.closed().value), clock.now()));
    } else if (machine.state(from) == PrimaryReplica::BackupState::kGreeting) {
      take(machine.receive(from, Welcome{}, clock.now()));
    } else {
      take(machine.receive(from, random.chance(4) ? Message(Ack{machine.closed()}) : Message(Heartbeat{1}),
                           clock.now()));
    }
  }
}

TEST(ReplicaRandom, NoPrimaryBreaksABackup) {
  for (std::uint64_t seed = 0; seed < 2000; ++seed) {
    SCOPED_TRACE(seed);
    run_backup(seed);
    if (HasFatalFailure()) return;
  }
}

TEST(ReplicaRandom, NoBackupBreaksAPrimary) {
  for (std::uint64_t seed = 0; seed < 2000; ++seed) {
    SCOPED_TRACE(seed);
    run_primary(seed);
    if (HasFatalFailure()) return;
  }
}

}  // namespace
}  // namespace pollux::protocol
