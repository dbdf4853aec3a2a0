// The arbiter as every replica may rely on it: each term is given once, in sequence, and for ever, with the members that its
// claim named.
#pragma once

#include <algorithm>
#include <utility>
#include <vector>

#include "event_queue.h"
#include "protocol/types.h"
#include "protocol/verdict.h"

namespace pollux::sim {

class ArbiterModel {
 public:
  // `forgets`: a mutant that gives a term to everyone.
  ArbiterModel(protocol::Term first, HostId owner, bool forgets) : forgets_(forgets) {
    won_.resize(first.value + 1, {owner, {}});
  }

  protocol::Verdict claim(protocol::Term term, HostId claimant, std::vector<HostId> members) {
    using protocol::Verdict;
    if (term.value == won_.size()) won_.push_back({claimant, std::move(members)});
    if (forgets_ || (term == last() && owner(term) == claimant)) return Verdict::kWon;
    return decided(term) && is_member(claimant) ? Verdict::kMember : Verdict::kLost;
  }
  [[nodiscard]] protocol::Term last() const { return {won_.size() - 1}; }
  [[nodiscard]] bool decided(protocol::Term term) const { return term.value < won_.size(); }
  [[nodiscard]] HostId owner(protocol::Term term) const { return won_[term.value].owner; }
  // Of the last term.
  [[nodiscard]] const std::vector<HostId>& members() const { return won_.back().members; }
  [[nodiscard]] bool is_member(HostId host) const { return std::ranges::find(members(), host) != members().end(); }

 private:
  struct Won {
    HostId owner;
    std::vector<HostId> members;
  };
  std::vector<Won> won_;  // by term
  bool forgets_;
};

}  // namespace pollux::sim
