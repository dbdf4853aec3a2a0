#include "mutants.h"

#include <algorithm>
#include <map>
#include <utility>
#include <vector>

namespace pollux::sim {

using namespace protocol;

// The primary's mutants.

// A rule that a primary lacks; as it is here, none.
class PrimaryMutation {
 public:
  using Effects = PrimaryReplica::Effects;

  explicit PrimaryMutation(PrimaryReplica& machine) : machine_(machine) {}
  virtual ~PrimaryMutation() = default;

  // What comes of an event, or of a message, on its way in.
  virtual Effects step(const primary::Event& event, TimePoint now) { return machine_.step(event, now); }
  virtual Effects receive(BackupId from, const Message& message, TimePoint now) { return machine_.receive(from, message, now); }
  // An effect on its way out: appends what is carried out in its place.
  virtual void pass(const primary::Effect& effect, TimePoint, Effects& out) { out.push_back(effect); }
  // What its host sees of it.
  [[nodiscard]] virtual bool required(BackupId backup) const { return machine_.required(backup); }
  [[nodiscard]] virtual EpochId committed() const { return machine_.committed(); }
  [[nodiscard]] virtual bool unprotected() const { return machine_.unprotected(); }

  void pass_all(const Effects& effects, TimePoint now, Effects& out) {
    for (const primary::Effect& effect : effects) pass(effect, now, out);
  }

 protected:
  PrimaryReplica& machine_;
};

namespace {

void append(PrimaryReplica::Effects& effects, PrimaryReplica::Effects more) {
  effects.insert(effects.end(), more.begin(), more.end());
}

// Those that commit what the state machine has not yet: its own commits come too late then.
class EarlyCommit : public PrimaryMutation {
 public:
  using PrimaryMutation::PrimaryMutation;
  void pass(const primary::Effect& effect, TimePoint, Effects& out) override {
    const auto* commit = std::get_if<primary::Committed>(&effect);
    if (commit == nullptr || commit->epoch >= early_) out.push_back(effect);
  }
  [[nodiscard]] EpochId committed() const override { return std::max(machine_.committed(), early_); }

 protected:
  void commit(EpochId epoch, Effects& effects) {
    early_ = epoch;
    effects.emplace_back(primary::Committed{epoch});
  }

 private:
  EpochId early_{};
};

class SkipCommitWait : public EarlyCommit {
 public:
  using EarlyCommit::EarlyCommit;
  Effects step(const primary::Event& event, TimePoint now) override {
    Effects effects = machine_.step(event, now);
    if (const auto* closed = std::get_if<primary::EpochClosed>(&event)) commit(closed->epoch, effects);
    return effects;
  }
};

class JoinerNotAwaited : public EarlyCommit {
 public:
  using EarlyCommit::EarlyCommit;
  Effects step(const primary::Event& event, TimePoint now) override {
    Effects effects = machine_.step(event, now);
    const auto* closed = std::get_if<primary::EpochClosed>(&event);
    if (closed != nullptr && was_alone_) commit(closed->epoch, effects);
    return effects;
  }
  void pass(const primary::Effect& effect, TimePoint now, Effects& out) override {
    was_alone_ |= std::holds_alternative<primary::Unprotected>(effect) || std::holds_alternative<primary::Replicating>(effect);
    EarlyCommit::pass(effect, now, out);
  }

 private:
  bool was_alone_ = false;
};

class FencedGoesOn : public EarlyCommit {
 public:
  using EarlyCommit::EarlyCommit;
  void pass(const primary::Effect& effect, TimePoint now, Effects& out) override {
    if (std::holds_alternative<primary::Fenced>(effect)) return commit(machine_.closed(), out);
    EarlyCommit::pass(effect, now, out);
  }
};

class LostDoesNotCount : public EarlyCommit {
 public:
  using EarlyCommit::EarlyCommit;
  Effects receive(BackupId from, const Message& message, TimePoint now) override {
    const auto* ack = std::get_if<Ack>(&message);
    if (ack != nullptr) acked_[from] = ack->epoch;
    Effects effects = machine_.receive(from, message, now);
    if (ack != nullptr && machine_.claiming()) commit_without_the_lost(effects);
    return effects;
  }
  void pass(const primary::Effect& effect, TimePoint now, Effects& out) override {
    if (std::holds_alternative<primary::ClaimTerm>(effect)) commit_without_the_lost(out);
    EarlyCommit::pass(effect, now, out);
  }

 private:
  void commit_without_the_lost(Effects& effects) {
    EpochId least = machine_.closed();
    for (BackupId b; b < machine_.next_backup(); ++b.value) {
      if (!machine_.required(b)) continue;
      const auto acked = acked_.find(b);
      least = std::min(least, acked == acked_.end() ? EpochId{0} : acked->second);
    }
    if (least > committed()) commit(least, effects);
  }

  std::map<BackupId, EpochId> acked_;
};

class OneAckForAll : public PrimaryMutation {
 public:
  using PrimaryMutation::PrimaryMutation;
  Effects receive(BackupId from, const Message& message, TimePoint now) override {
    const auto* ack = std::get_if<Ack>(&message);
    if (ack == nullptr) return machine_.receive(from, message, now);
    Effects effects;
    for (BackupId b; b < machine_.next_backup(); ++b.value) {
      const auto acked = acked_.find(b);
      // Only who acknowledged before is spoken for.
      if (acked != acked_.end() ? acked->second >= ack->epoch : b != from) continue;
      acked_[b] = ack->epoch;
      append(effects, machine_.receive(b, *ack, now));
    }
    return effects;
  }

 private:
  std::map<BackupId, EpochId> acked_;
};

class DropWithoutArbiter : public PrimaryMutation {
 public:
  using PrimaryMutation::PrimaryMutation;
  void pass(const primary::Effect& effect, TimePoint now, Effects& out) override {
    const auto* claim = std::get_if<primary::ClaimTerm>(&effect);
    if (claim == nullptr) return out.push_back(effect);
    pass_all(machine_.step(primary::TermWon{claim->term}, now), now, out);
  }
};

class PrimaryTakesUnreachableForWon : public PrimaryMutation {
 public:
  using PrimaryMutation::PrimaryMutation;
  Effects step(const primary::Event& event, TimePoint now) override {
    const bool unreachable = std::holds_alternative<primary::ArbiterUnreachable>(event);
    return claimed_ && unreachable ? machine_.step(primary::TermWon{*claimed_}, now) : machine_.step(event, now);
  }
  void pass(const primary::Effect& effect, TimePoint, Effects& out) override {
    if (const auto* claim = std::get_if<primary::ClaimTerm>(&effect)) claimed_ = claim->term;
    out.push_back(effect);
  }

 private:
  std::optional<Term> claimed_;
};

class GoodbyeBeforeTheTerm : public PrimaryMutation {
 public:
  using PrimaryMutation::PrimaryMutation;
  void pass(const primary::Effect& effect, TimePoint, Effects& out) override {
    const bool claims = std::holds_alternative<primary::ClaimTerm>(effect);
    for (BackupId b; claims && b < machine_.next_backup(); ++b.value) {
      if (machine_.state(b) != PrimaryReplica::BackupState::kLost) continue;
      out.emplace_back(primary::Send{b, Goodbye{GoodbyeReason::kDropped, "given up"}});
    }
    out.push_back(effect);
  }
};

class ReleaseWithoutTerm : public PrimaryMutation {
 public:
  using PrimaryMutation::PrimaryMutation;
  Effects step(const primary::Event& event, TimePoint now) override {
    if (const auto* release = std::get_if<primary::Release>(&event)) released_ = release->backup;
    return machine_.step(event, now);
  }
  void pass(const primary::Effect& effect, TimePoint, Effects& out) override {
    if (released_ && std::holds_alternative<primary::ClaimTerm>(effect)) {
      out.emplace_back(primary::Send{*released_, Goodbye{GoodbyeReason::kDropped, "given up"}});
    }
    out.push_back(effect);
  }

 private:
  std::optional<BackupId> released_;
};

class SyncEndNotRequired : public PrimaryMutation {
 public:
  using PrimaryMutation::PrimaryMutation;
  Effects step(const primary::Event& event, TimePoint now) override {
    if (const auto* finished = std::get_if<primary::SyncFinished>(&event)) {
      late_ = *finished;
      return {};
    }
    Effects effects;
    if (std::holds_alternative<primary::EpochClosed>(event)) tell(effects, now);
    append(effects, machine_.step(event, now));
    return effects;
  }
  Effects receive(BackupId from, const Message& message, TimePoint now) override {
    Effects effects;
    if (late_ && late_->backup == from && std::holds_alternative<Ack>(message)) tell(effects, now);
    append(effects, machine_.receive(from, message, now));
    return effects;
  }
  [[nodiscard]] bool required(BackupId backup) const override {
    return machine_.required(backup) || (late_ && late_->backup == backup);
  }

 private:
  void tell(Effects& effects, TimePoint now) {
    if (const auto finished = std::exchange(late_, std::nullopt)) append(effects, machine_.step(*finished, now));
  }

  std::optional<primary::SyncFinished> late_;
};

class FlushNotAwaited : public PrimaryMutation {
 public:
  using PrimaryMutation::PrimaryMutation;
  Effects step(const primary::Event& event, TimePoint now) override {
    return std::holds_alternative<primary::EpochDurable>(event) ? Effects{} : machine_.step(event, now);
  }
  void pass(const primary::Effect& effect, TimePoint now, Effects& out) override {
    out.push_back(effect);
    const auto* commit = std::get_if<primary::Committed>(&effect);
    if (commit != nullptr) pass_all(machine_.step(primary::EpochDurable{commit->epoch}, now), now, out);
  }
};

class AloneWithoutDurability : public PrimaryMutation {
 public:
  using PrimaryMutation::PrimaryMutation;
  void pass(const primary::Effect& effect, TimePoint, Effects& out) override {
    out.push_back(effect);
    if (auto* commit = std::get_if<primary::Committed>(&out.back())) commit->durable_first = false;
  }
  [[nodiscard]] bool unprotected() const override { return false; }
};

class LostIsMember : public PrimaryMutation {
 public:
  using PrimaryMutation::PrimaryMutation;
  Effects receive(BackupId from, const Message& message, TimePoint now) override {
    if (const auto* welcome = std::get_if<Welcome>(&message)) welcomed_[from] = welcome->replica;
    return machine_.receive(from, message, now);
  }
  void pass(const primary::Effect& effect, TimePoint, Effects& out) override {
    const auto* claim = std::get_if<primary::ClaimTerm>(&effect);
    if (claim == nullptr) return out.push_back(effect);
    // The same each time it is asked.
    if (!named_ || named_->term != claim->term) named_ = with_the_lost(*claim);
    out.emplace_back(*named_);
  }

 private:
  [[nodiscard]] primary::ClaimTerm with_the_lost(primary::ClaimTerm claim) const {
    for (const auto& [backup, replica] : welcomed_) {
      if (machine_.state(backup) == PrimaryReplica::BackupState::kLost) claim.members.push_back(replica);
    }
    return claim;
  }

  std::map<BackupId, ReplicaId> welcomed_;
  std::optional<primary::ClaimTerm> named_;
};

class MemberNeedsNoTerm : public PrimaryMutation {
 public:
  using PrimaryMutation::PrimaryMutation;
  Effects step(const primary::Event& event, TimePoint now) override {
    Effects effects = machine_.step(event, now);
    if (std::holds_alternative<primary::TermWon>(event) && machine_.claiming()) {
      effects.pop_back();  // the next claim
      append(effects, machine_.step(primary::TermWon{machine_.term().next()}, now));
    }
    return effects;
  }
};

std::unique_ptr<PrimaryMutation> mutation_of(PrimaryReplica& machine, Mutant mutant) {
  switch (mutant) {
    case Mutant::kSkipCommitWait: return std::make_unique<SkipCommitWait>(machine);
    case Mutant::kOneAckForAll: return std::make_unique<OneAckForAll>(machine);
    case Mutant::kDropWithoutArbiter: return std::make_unique<DropWithoutArbiter>(machine);
    case Mutant::kUnreachableIsWon: return std::make_unique<PrimaryTakesUnreachableForWon>(machine);
    case Mutant::kFencedGoesOn: return std::make_unique<FencedGoesOn>(machine);
    case Mutant::kGoodbyeBeforeTheTerm: return std::make_unique<GoodbyeBeforeTheTerm>(machine);
    case Mutant::kSyncEndNotRequired: return std::make_unique<SyncEndNotRequired>(machine);
    case Mutant::kFlushNotAwaited: return std::make_unique<FlushNotAwaited>(machine);
    case Mutant::kAloneWithoutDurability: return std::make_unique<AloneWithoutDurability>(machine);
    case Mutant::kLostDoesNotCount: return std::make_unique<LostDoesNotCount>(machine);
    case Mutant::kReleaseWithoutTerm: return std::make_unique<ReleaseWithoutTerm>(machine);
    case Mutant::kJoinerNotAwaited: return std::make_unique<JoinerNotAwaited>(machine);
    case Mutant::kLostIsMember: return std::make_unique<LostIsMember>(machine);
    case Mutant::kMemberNeedsNoTerm: return std::make_unique<MemberNeedsNoTerm>(machine);
    default: return nullptr;
  }
}

}  // namespace

// The backup's mutants.

// A rule that a backup lacks; as it is here, none.
class BackupMutation {
 public:
  using Effects = BackupReplica::Effects;

  explicit BackupMutation(BackupReplica& machine) : machine_(machine) {}
  virtual ~BackupMutation() = default;

  virtual Effects step(const backup::Event& event, TimePoint now) { return machine_.step(event, now); }
  virtual Effects receive(const Message& message, TimePoint now) { return machine_.receive(message, now); }
  virtual void pass(const backup::Effect& effect, TimePoint, Effects& out) { out.push_back(effect); }

  void pass_all(const Effects& effects, TimePoint now, Effects& out) {
    for (const backup::Effect& effect : effects) pass(effect, now, out);
  }

 protected:
  BackupReplica& machine_;
};

namespace {

class PromoteWithoutArbiter : public BackupMutation {
 public:
  using BackupMutation::BackupMutation;
  void pass(const backup::Effect& effect, TimePoint now, Effects& out) override {
    const auto* claim = std::get_if<backup::ClaimTerm>(&effect);
    if (claim == nullptr) return out.push_back(effect);
    pass_all(machine_.step(backup::TermWon{claim->term}, now), now, out);
  }
};

class BackupTakesUnreachableForWon : public BackupMutation {
 public:
  using BackupMutation::BackupMutation;
  Effects step(const backup::Event& event, TimePoint now) override {
    const bool unreachable = std::holds_alternative<backup::ArbiterUnreachable>(event);
    return claimed_ && unreachable ? machine_.step(backup::TermWon{*claimed_}, now) : machine_.step(event, now);
  }
  void pass(const backup::Effect& effect, TimePoint, Effects& out) override {
    if (const auto* claim = std::get_if<backup::ClaimTerm>(&effect)) claimed_ = claim->term;
    out.push_back(effect);
  }

 private:
  std::optional<Term> claimed_;
};

// The state machine knows only of its first claim: later terms are so many further.
class ClaimUntilWon : public BackupMutation {
 public:
  using BackupMutation::BackupMutation;
  Effects step(const backup::Event& event, TimePoint now) override {
    if (const auto* own = std::get_if<backup::TermOfOwnPrimary>(&event)) return claim_after(own->term);
    if (const auto* lost = std::get_if<backup::TermLost>(&event)) return claim_after(lost->term);
    if (const auto* won = std::get_if<backup::TermWon>(&event)) {
      return machine_.step(backup::TermWon{{won->term.value - further_}}, now);
    }
    return machine_.step(event, now);
  }
  void pass(const backup::Effect& effect, TimePoint, Effects& out) override {
    out.push_back(effect);
    if (auto* claim = std::get_if<backup::ClaimTerm>(&out.back())) claim->term.value += further_;
    if (auto* promote = std::get_if<backup::Promote>(&out.back())) promote->term.value += further_;
  }

 private:
  Effects claim_after(Term lost) { return {backup::ClaimTerm{{lost.value - further_++}}}; }

  std::uint64_t further_ = 0;
};

class IgnoreNewTerm : public BackupMutation {
 public:
  using BackupMutation::BackupMutation;
  Effects receive(const Message& message, TimePoint now) override {
    return std::holds_alternative<NewTerm>(message) ? Effects{} : machine_.receive(message, now);
  }
};

class HalfRecord : public BackupMutation {
 public:
  using BackupMutation::BackupMutation;
  Effects step(const backup::Event& event, TimePoint now) override {
    const auto* applied = std::get_if<backup::EpochApplied>(&event);
    return half_ && applied != nullptr && applied->epoch == *half_ ? Effects{} : machine_.step(event, now);
  }
  void pass(const backup::Effect& effect, TimePoint, Effects& out) override {
    const auto* discard = std::get_if<backup::DiscardPartial>(&effect);
    if (discard == nullptr) return out.push_back(effect);
    half_ = discard->epoch;
    out.emplace_back(backup::ApplyEpoch{discard->epoch});
  }

 private:
  std::optional<EpochId> half_;
};

// The state machine hears at once that everything is applied and durable, and not again when it is.
class AckBeforeDurable : public BackupMutation {
 public:
  using BackupMutation::BackupMutation;
  Effects step(const backup::Event& event, TimePoint now) override {
    const auto* applied = std::get_if<backup::EpochApplied>(&event);
    const auto* durable = std::get_if<backup::EpochDurable>(&event);
    if (told_ && applied != nullptr && applied->epoch <= *told_) return {};
    if (told_ && durable != nullptr && durable->epoch <= *told_) return {};
    if (applied != nullptr) std::erase(unapplied_, applied->epoch);
    return machine_.step(event, now);
  }
  void pass(const backup::Effect& effect, TimePoint now, Effects& out) override {
    out.push_back(effect);
    if (const auto* apply = std::get_if<backup::ApplyEpoch>(&effect)) unapplied_.push_back(apply->epoch);
    const auto* durable = std::get_if<backup::MakeDurable>(&effect);
    if (durable == nullptr) return;
    told_ = durable->epoch;
    for (const EpochId epoch : std::exchange(unapplied_, {})) {
      pass_all(machine_.step(backup::EpochApplied{epoch}, now), now, out);
    }
    pass_all(machine_.step(backup::EpochDurable{*told_}, now), now, out);
  }

 private:
  std::vector<EpochId> unapplied_;
  std::optional<EpochId> told_;
};

class GoodbyePromotes : public BackupMutation {
 public:
  using BackupMutation::BackupMutation;
  Effects receive(const Message& message, TimePoint now) override {
    if (std::holds_alternative<Goodbye>(message)) return machine_.step(backup::LinkDown{"goodbye"}, now);
    return machine_.receive(message, now);
  }
};

class AcksWhileClaiming : public BackupMutation {
 public:
  using BackupMutation::BackupMutation;
  Effects receive(const Message& message, TimePoint now) override {
    const auto* close = std::get_if<EpochClose>(&message);
    const bool claims = machine_.state() == BackupReplica::State::kClaiming;
    if (claims && close != nullptr) return {backup::Send{Ack{close->epoch}}};
    return machine_.receive(message, now);
  }
};

class MemberIsFenced : public BackupMutation {
 public:
  using BackupMutation::BackupMutation;
  Effects step(const backup::Event& event, TimePoint now) override {
    const auto* own = std::get_if<backup::TermOfOwnPrimary>(&event);
    return own != nullptr ? machine_.step(backup::TermLost{own->term}, now) : machine_.step(event, now);
  }
};

std::unique_ptr<BackupMutation> mutation_of(BackupReplica& machine, Mutant mutant) {
  switch (mutant) {
    case Mutant::kPromoteWithoutArbiter: return std::make_unique<PromoteWithoutArbiter>(machine);
    case Mutant::kUnreachableIsWon: return std::make_unique<BackupTakesUnreachableForWon>(machine);
    case Mutant::kClaimUntilWon: return std::make_unique<ClaimUntilWon>(machine);
    case Mutant::kIgnoreNewTerm: return std::make_unique<IgnoreNewTerm>(machine);
    case Mutant::kHalfRecord: return std::make_unique<HalfRecord>(machine);
    case Mutant::kAckBeforeDurable: return std::make_unique<AckBeforeDurable>(machine);
    case Mutant::kGoodbyePromotes: return std::make_unique<GoodbyePromotes>(machine);
    case Mutant::kAcksWhileClaiming: return std::make_unique<AcksWhileClaiming>(machine);
    case Mutant::kMemberIsFenced: return std::make_unique<MemberIsFenced>(machine);
    default: return nullptr;
  }
}

// What comes of the effects on their way out.
template <class Mutation, class Effects>
Effects passed(Mutation& mutation, const Effects& effects, TimePoint now) {
  Effects out;
  mutation.pass_all(effects, now, out);
  return out;
}

}  // namespace

// Around the state machines.

PrimaryUnderTest::PrimaryUnderTest(PrimaryConfig config, Mutant mutant)
    : machine_(std::move(config)), mutation_(mutation_of(machine_, mutant)) {}

PrimaryUnderTest::~PrimaryUnderTest() = default;

PrimaryUnderTest::Effects PrimaryUnderTest::step(const primary::Event& event, TimePoint now) {
  return mutation_ ? passed(*mutation_, mutation_->step(event, now), now) : machine_.step(event, now);
}

PrimaryUnderTest::Effects PrimaryUnderTest::receive(BackupId from, const Message& message, TimePoint now) {
  return mutation_ ? passed(*mutation_, mutation_->receive(from, message, now), now) : machine_.receive(from, message, now);
}

bool PrimaryUnderTest::required(BackupId backup) const {
  return mutation_ ? mutation_->required(backup) : machine_.required(backup);
}

EpochId PrimaryUnderTest::committed() const { return mutation_ ? mutation_->committed() : machine_.committed(); }

bool PrimaryUnderTest::unprotected() const { return mutation_ ? mutation_->unprotected() : machine_.unprotected(); }

BackupUnderTest::BackupUnderTest(BackupConfig config, Mutant mutant)
    : machine_(config), mutation_(mutation_of(machine_, mutant)) {}

BackupUnderTest::~BackupUnderTest() = default;

BackupUnderTest::Effects BackupUnderTest::step(const backup::Event& event, TimePoint now) {
  return mutation_ ? passed(*mutation_, mutation_->step(event, now), now) : machine_.step(event, now);
}

BackupUnderTest::Effects BackupUnderTest::receive(const Message& message, TimePoint now) {
  return mutation_ ? passed(*mutation_, mutation_->receive(message, now), now) : machine_.receive(message, now);
}

}  // namespace pollux::sim
