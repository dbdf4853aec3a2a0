#include "invariants.h"

#include <algorithm>

#include "backup_host.h"
#include "primary_host.h"
#include "world.h"

namespace pollux::sim {

using namespace protocol;

void Checker::require(bool holds, const char* what) const { world_.require(holds, what); }

void Checker::released(const Host& host, const Outputs& outputs) {
  const Term term = host.leads_in();
  require(world_.arbiter().decided(term) && world_.arbiter().owner(term) == host.id(),
          "outputs in a term that is another's");
  for (const Promotion& promotion : promotions_) {
    require(promotion.term <= term || outputs.to <= promotion.position,
            "two leaders: outputs of an earlier term beyond the state that a later term began with");
  }
  on_one_line(host, outputs.to);
  if (outputs.epoch == EpochId{0}) return;
  const auto& primary = static_cast<const PrimaryHost&>(host);
  require(!primary.fenced(), "outputs of a fenced primary");
  committed_by_all(primary, outputs);
  durable_where_promised(primary, outputs);
}

void Checker::on_one_line(const Host& host, std::size_t to) {
  on_line_.resize(std::max<std::size_t>(on_line_.size(), host.id().value + 1u));
  for (std::size_t& at = on_line_[host.id().value]; at < to; ++at) {
    const std::uint64_t hash = host.guest().at(at + 1).hash;
    if (at == line_.size()) line_.push_back(hash);
    require(line_[at] == hash, "the client saw outputs of two executions");
  }
}

// Every backup that may take over holds the epoch. Who was dropped may not; given_up() looks at that.
void Checker::committed_by_all(const PrimaryHost& primary, const Outputs& outputs) const {
  for (std::size_t b = 0; b < primary.peers(); ++b) {
    const PrimaryHost::Peer& peer = primary.peer(b);
    if (!peer.vouches_for(outputs.epoch)) continue;
    const auto acknowledged = peer.host->acknowledged();
    require(acknowledged && *acknowledged >= outputs.epoch,
            "outputs before a required backup acknowledged their epoch");
  }
}

void Checker::durable_where_promised(const PrimaryHost& primary, const Outputs& outputs) const {
  const bool flush = primary.flushed(outputs.epoch);
  const EpochId previous = primary.previous_flush(outputs.epoch);
  if (!flush) {
    bool anyone = primary.durable() >= previous;
    for (std::size_t b = 0; b < primary.peers(); ++b) {
      const PrimaryHost::Peer& peer = primary.peer(b);
      anyone |= peer.vouches_for(outputs.epoch) && peer.host->durable() >= previous;
    }
    require(anyone, "outputs that may speak of a flush which no host in charge holds durably");
    return;
  }
  require(primary.durable() >= previous, "a flush was released while the primary lacks the one before");
  bool protecting = false;
  for (std::size_t b = 0; b < primary.peers(); ++b) {
    const PrimaryHost::Peer& peer = primary.peer(b);
    if (!peer.vouches_for(outputs.epoch)) continue;
    protecting = true;
    require(peer.host->durable() >= outputs.epoch,
            "a flush was released that a required backup does not hold durably");
  }
  require(protecting || primary.durable() >= outputs.epoch,
          "alone, a flush was released that is not durable");
}

// Whoever may have SyncEnd can promote itself, unless the term it would claim is the primary's and the last one does not name
// it.
void Checker::given_up(const PrimaryHost& primary, std::size_t backup) {
  if (!primary.peer(backup).sync_end_sent) return;
  const Term next = primary.peer(backup).host->told_term().next();
  require(world_.arbiter().decided(next) && world_.arbiter().owner(next) == primary.id() &&
              !world_.arbiter().is_member(primary.peer(backup).host->id()),
          "a required backup was given up without a term");
}

void Checker::superseded(const PrimaryHost& primary, std::size_t backup) {
  if (!primary.peer(backup).sync_end_sent) return;
  const Term next = primary.peer(backup).host->told_term().next();
  // Also one that was not told of the last term yet.
  require(world_.arbiter().decided(next) && !world_.arbiter().is_member(primary.peer(backup).host->id()),
          "the primary left, and a term that a backup could claim is open");
}

void Checker::claims(const BackupHost& backup, Term term) {
  require(term > backup.told_term(), "a backup claims a term it was told is taken");
}

void Checker::promoted(const BackupHost& backup, EpochId epoch, Term term) {
  require(world_.arbiter().decided(term) && world_.arbiter().owner(term) == backup.id(),
          "a backup promoted itself in a term that is another's");
  require(!backup.heard_goodbye(), "a backup promoted itself after its primary's Goodbye");
  const GuestState state = backup.primary().at_end_of(epoch);
  require(state.position >= line_.size(), "the promoted state lacks an epoch whose outputs were released");
  for (const Promotion& other : promotions_) require(other.term != term, "two promotions in one term");
  promotions_.push_back({term, state.position});
}

GuestState Checker::image_at_promotion(const BackupHost& backup, EpochId epoch, GuestState pages, GuestState state) {
  const GuestState expected = backup.primary().at_end_of(epoch);
  require(pages == expected && state == expected,
          "the promoted image is not the state at the end of its epoch");
  return expected;
}

// Two correct replicas never have cause to accuse each other: who breaks the protocol is a mutant. What a session lets through
// is what the other side said.
void Checker::turned_against(const Message& message) const {
  const bool leaves = std::holds_alternative<Goodbye>(message) || std::holds_alternative<Refuse>(message);
  if (!leaves && !is_of_a_replica(world_.mutant())) {
    throw Violation("a correct replica is accused of a violation, for " + to_string(message));
  }
}

// Terms are given once: with the first of these at most one replica can let anything out in any of them.
void Checker::holds(const PrimaryHost& primary) {
  if (primary.is_over()) return;
  const Term term = primary.leads_in();
  require(world_.arbiter().decided(term) && world_.arbiter().owner(term) == primary.id(),
          "a primary leads in a term that is another's");
  reached_.resize(std::max<std::size_t>(reached_.size(), primary.id().value + 1u));
  Reached& before = reached_[primary.id().value];
  const EpochId committed = primary.committed();
  require(term >= before.term && committed >= before.committed, "a primary went back to an earlier term or commit");
  before = {term, committed};
  require(committed <= primary.closed(), "a primary commits an epoch that is not closed");
  require(primary.durable() <= committed, "a primary's image holds an epoch that is not committed");
  for (std::size_t b = 0; b < primary.peers(); ++b) {
    const PrimaryHost::Peer& peer = primary.peer(b);
    if (!peer.sync_end_sent || peer.dropped) continue;
    require(committed <= std::max(peer.base, peer.host->acknowledged().value_or(peer.base)),
            "a commit beyond what a required backup acknowledged");
  }
}

void Checker::holds(const BackupHost& backup) const {
  if (backup.is_over()) return;
  require(backup.staged_bytes() <= BackupHost::kStagingBytes + BackupHost::kMaxRecordBytes,
          "a backup stages more than allowed");
  require(backup.disk().jobs.size() <= BackupHost::kMaxDiskJobs, "more jobs wait for a backup's disk than allowed");
  const auto acknowledged = backup.acknowledged();
  if (!acknowledged) return;
  require(*acknowledged <= backup.last_whole(), "a backup acknowledged an epoch that it lacks");
  require(backup.primary().previous_flush(acknowledged->next()) <= backup.durable(),
          "a backup acknowledged a flush that is not durable");
}

}  // namespace pollux::sim
