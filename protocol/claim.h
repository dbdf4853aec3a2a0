// How the engines ask an arbiter for a term, whichever arbiter it is.
#pragma once

#include <functional>
#include <vector>

#include "protocol/types.h"
#include "protocol/verdict.h"

namespace pollux::protocol {

inline constexpr std::size_t kMaxMembers = 8;

struct TermClaim {
  VmId vm;
  Term term;
  ReplicaId claimant;
  // Backups that the claimant goes on with: in that term it lets nothing out which they do not have. At most kMaxMembers.
  std::vector<ReplicaId> members = {};
};

// Claims it at the arbiter. May take as long as the arbiter's own timeout, and is called by one thread at a time. Empty:
// there is no arbiter, and every claim counts as won.
using Claim = std::function<Verdict(const TermClaim&)>;

}  // namespace pollux::protocol
