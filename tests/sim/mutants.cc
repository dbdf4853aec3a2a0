#include "mutants.h"

#include <algorithm>
#include <utility>

namespace pollux::sim {

using namespace protocol;

// The primary.

PrimaryUnderTest::Effects PrimaryUnderTest::step(const primary::Event& event, TimePoint now) {
  Effects effects;
  if (mutant_ == Mutant::kSyncEndNotRequired) {
    if (const auto* finished = std::get_if<primary::SyncFinished>(&event)) {
      late_ = *finished;
      return {};
    }
    if (late_ && std::holds_alternative<primary::EpochClosed>(event)) {
      append(effects, machine_.step(*std::exchange(late_, std::nullopt), now));
    }
  }
  if (const auto* release = std::get_if<primary::Release>(&event)) released_ = release->backup;
  if (mutant_ == Mutant::kFlushNotAwaited && std::holds_alternative<primary::EpochDurable>(event)) return {};
  if (mutant_ == Mutant::kUnreachableIsWon && claimed_ &&
      std::holds_alternative<primary::ArbiterUnreachable>(event)) {
    append(effects, machine_.step(primary::TermWon{*claimed_}, now));
  } else {
    append(effects, machine_.step(event, now));
  }
  if (mutant_ == Mutant::kMemberNeedsNoTerm && std::holds_alternative<primary::TermWon>(event) && machine_.claiming()) {
    effects.pop_back();  // the next claim
    append(effects, machine_.step(primary::TermWon{machine_.term().next()}, now));
  }
  if (const auto* closed = std::get_if<primary::EpochClosed>(&event);
      closed != nullptr && (mutant_ == Mutant::kSkipCommitWait || (mutant_ == Mutant::kJoinerNotAwaited && was_alone_))) {
    early_committed_ = closed->epoch;
    effects.emplace_back(primary::Committed{closed->epoch});
  }
  return filter(std::move(effects), now);
}

PrimaryUnderTest::Effects PrimaryUnderTest::receive(BackupId from, const Message& message, TimePoint now) {
  const auto* ack = std::get_if<Ack>(&message);
  if (ack != nullptr && mutant_ == Mutant::kOneAckForAll) return acknowledge_for_all(from, ack->epoch, now);
  Effects effects;
  if (ack != nullptr) acked_[from] = ack->epoch;
  if (const auto* welcome = std::get_if<Welcome>(&message)) welcomed_[from] = welcome->replica;
  if (ack != nullptr && late_ && late_->backup == from) {
    append(effects, machine_.step(*std::exchange(late_, std::nullopt), now));
  }
  append(effects, machine_.receive(from, message, now));
  if (ack != nullptr && mutant_ == Mutant::kLostDoesNotCount && machine_.claiming() &&
      acknowledged_without_the_lost() > committed()) {
    early_committed_ = acknowledged_without_the_lost();
    effects.emplace_back(primary::Committed{early_committed_});
  }
  return filter(std::move(effects), now);
}

EpochId PrimaryUnderTest::acknowledged_without_the_lost() const {
  EpochId least = machine_.closed();
  for (BackupId b; b < machine_.next_backup(); ++b.value) {
    if (!machine_.required(b)) continue;
    const auto acked = acked_.find(b);
    least = std::min(least, acked == acked_.end() ? EpochId{0} : acked->second);
  }
  return least;
}

// The same each time it is asked.
primary::ClaimTerm PrimaryUnderTest::with_the_lost(primary::ClaimTerm claim) {
  if (named_ && named_->term == claim.term) return *named_;
  for (const auto& [backup, replica] : welcomed_) {
    if (machine_.state(backup) == PrimaryReplica::BackupState::kLost) claim.members.push_back(replica);
  }
  return named_.emplace(std::move(claim));
}

bool PrimaryUnderTest::required(BackupId backup) const {
  return machine_.required(backup) || (late_ && late_->backup == backup);
}

PrimaryUnderTest::Effects PrimaryUnderTest::acknowledge_for_all(BackupId from, EpochId epoch, TimePoint now) {
  Effects effects;
  for (BackupId b; b < machine_.next_backup(); ++b.value) {
    const auto acked = acked_.find(b);
    if (acked != acked_.end() ? acked->second >= epoch : b != from) continue;  // only who acknowledged before is spoken for
    acked_[b] = epoch;
    append(effects, machine_.receive(b, Ack{epoch}, now));
  }
  return filter(std::move(effects), now);
}

PrimaryUnderTest::Effects PrimaryUnderTest::filter(Effects effects, TimePoint now) {
  if (mutant_ == Mutant::kNone) return effects;
  Effects out;
  for (const primary::Effect& effect : effects) {
    const auto* claim = std::get_if<primary::ClaimTerm>(&effect);
    const auto* commit = std::get_if<primary::Committed>(&effect);
    was_alone_ |= std::holds_alternative<primary::Unprotected>(effect) || std::holds_alternative<primary::Replicating>(effect);
    if (claim != nullptr) {
      claimed_ = claim->term;
      if (mutant_ == Mutant::kLostIsMember) {
        out.emplace_back(with_the_lost(*claim));
        continue;
      }
      if (mutant_ == Mutant::kDropWithoutArbiter) {
        append(out, machine_.step(primary::TermWon{claim->term}, now));
        continue;
      }
      if (mutant_ == Mutant::kLostDoesNotCount && acknowledged_without_the_lost() > committed()) {
        early_committed_ = acknowledged_without_the_lost();
        out.emplace_back(primary::Committed{early_committed_});
      }
      if (mutant_ == Mutant::kReleaseWithoutTerm) {
        if (released_) out.emplace_back(primary::Send{*released_, Goodbye{GoodbyeReason::kDropped, "given up"}});
      }
      if (mutant_ == Mutant::kGoodbyeBeforeTheTerm) {
        for (BackupId b; b < machine_.next_backup(); ++b.value) {
          if (machine_.state(b) == PrimaryReplica::BackupState::kLost) {
            out.emplace_back(primary::Send{b, Goodbye{GoodbyeReason::kDropped, "given up"}});
          }
        }
      }
    }
    if (commit != nullptr) {
      primary::Committed changed = *commit;
      if (mutant_ == Mutant::kAloneWithoutDurability) changed.durable_first = false;
      if (commit->epoch < early_committed_) continue;
      out.emplace_back(changed);
      if (mutant_ == Mutant::kFlushNotAwaited)
        append(out, filter(machine_.step(primary::EpochDurable{commit->epoch}, now), now));
      continue;
    }
    if (std::holds_alternative<primary::Fenced>(effect) && mutant_ == Mutant::kFencedGoesOn) {
      early_committed_ = machine_.closed();
      out.emplace_back(primary::Committed{machine_.closed()});
      continue;
    }
    out.push_back(effect);
  }
  return out;
}

// The backup.

BackupUnderTest::Effects BackupUnderTest::step(const backup::Event& event, TimePoint now) {
  if (already_told(event)) return {};
  if (const auto* applied = std::get_if<backup::EpochApplied>(&event)) std::erase(unapplied_, applied->epoch);
  if (mutant_ == Mutant::kUnreachableIsWon && claimed_ &&
      std::holds_alternative<backup::ArbiterUnreachable>(event)) {
    return filter(machine_.step(backup::TermWon{*claimed_}, now), now);
  }
  const auto* own = std::get_if<backup::TermOfOwnPrimary>(&event);
  if (own != nullptr && mutant_ == Mutant::kMemberIsFenced) return filter(machine_.step(backup::TermLost{own->term}, now), now);
  if (mutant_ == Mutant::kClaimUntilWon) {
    if (own != nullptr) return step(backup::TermLost{own->term}, now);
    if (const auto* lost = std::get_if<backup::TermLost>(&event)) {
      ++extra_terms_;
      return {backup::ClaimTerm{lost->term.next()}};
    }
    if (const auto* won = std::get_if<backup::TermWon>(&event)) {
      Effects effects = machine_.step(backup::TermWon{{won->term.value - extra_terms_}}, now);
      for (backup::Effect& effect : effects) {
        if (auto* promote = std::get_if<backup::Promote>(&effect)) promote->term = won->term;
      }
      return effects;
    }
  }
  return filter(machine_.step(event, now), now);
}

BackupUnderTest::Effects BackupUnderTest::receive(const Message& message, TimePoint now) {
  if (mutant_ == Mutant::kIgnoreNewTerm && std::holds_alternative<NewTerm>(message)) return {};
  if (mutant_ == Mutant::kGoodbyePromotes && std::holds_alternative<Goodbye>(message)) {
    return filter(machine_.step(backup::LinkDown{"goodbye"}, now), now);
  }
  if (mutant_ == Mutant::kAcksWhileClaiming && machine_.state() == BackupReplica::State::kClaiming) {
    if (const auto* close = std::get_if<EpochClose>(&message)) return {backup::Send{Ack{close->epoch}}};
  }
  return filter(machine_.receive(message, now), now);
}

bool BackupUnderTest::already_told(const backup::Event& event) const {
  if (const auto* applied = std::get_if<backup::EpochApplied>(&event)) {
    return (told_ && applied->epoch <= *told_) || (half_ && applied->epoch == *half_);
  }
  if (const auto* durable = std::get_if<backup::EpochDurable>(&event))
    return told_ && durable->epoch <= *told_;
  return false;
}

BackupUnderTest::Effects BackupUnderTest::filter(Effects effects, TimePoint now) {
  if (mutant_ == Mutant::kNone) return effects;
  Effects out;
  for (const backup::Effect& effect : effects) {
    const auto* apply = std::get_if<backup::ApplyEpoch>(&effect);
    const auto* durable = std::get_if<backup::MakeDurable>(&effect);
    const auto* claim = std::get_if<backup::ClaimTerm>(&effect);
    const auto* discard = std::get_if<backup::DiscardPartial>(&effect);
    if (claim != nullptr) {
      claimed_ = claim->term;
      if (mutant_ == Mutant::kPromoteWithoutArbiter) {
        for (backup::Effect& more : machine_.step(backup::TermWon{claim->term}, now))
          out.push_back(std::move(more));
        continue;
      }
      out.emplace_back(backup::ClaimTerm{{claim->term.value + extra_terms_}});
      continue;
    }
    if (discard != nullptr && mutant_ == Mutant::kHalfRecord) {
      half_ = discard->epoch;
      out.emplace_back(backup::ApplyEpoch{discard->epoch});
      continue;
    }
    out.push_back(effect);
    if (mutant_ != Mutant::kAckBeforeDurable) continue;
    if (apply != nullptr) unapplied_.push_back(apply->epoch);
    if (durable != nullptr) {
      for (const EpochId epoch : std::exchange(unapplied_, {})) {
        if (told_ && epoch <= *told_) continue;
        for (backup::Effect& more : machine_.step(backup::EpochApplied{epoch}, now))
          out.push_back(std::move(more));
      }
      told_ = durable->epoch;
      for (backup::Effect& more : machine_.step(backup::EpochDurable{durable->epoch}, now))
        out.push_back(std::move(more));
    }
  }
  return out;
}

}  // namespace pollux::sim
