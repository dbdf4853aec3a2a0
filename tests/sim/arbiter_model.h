// The arbiter as every replica may rely on it: each term is given once, in sequence, and for ever.
#pragma once

#include <vector>

#include "event_queue.h"
#include "protocol/types.h"
#include "protocol/verdict.h"

namespace pollux::sim {

class ArbiterModel {
 public:
  // `forgets`: a mutant that gives a term to everyone.
  ArbiterModel(protocol::Term first, HostId owner, bool forgets) : forgets_(forgets) {
    owners_.resize(first.value + 1, owner);
  }

  protocol::Verdict claim(protocol::Term term, HostId claimant) {
    using protocol::Verdict;
    if (term.value == owners_.size()) owners_.push_back(claimant);
    if (forgets_) return Verdict::kWon;
    return term == last() && owner(term) == claimant ? Verdict::kWon : Verdict::kLost;
  }
  [[nodiscard]] protocol::Term last() const { return {owners_.size() - 1}; }
  [[nodiscard]] bool decided(protocol::Term term) const { return term.value < owners_.size(); }
  [[nodiscard]] HostId owner(protocol::Term term) const { return owners_[term.value]; }

 private:
  std::vector<HostId> owners_;  // by term
  bool forgets_;
};

}  // namespace pollux::sim
