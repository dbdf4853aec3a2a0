// An arbiter's answer to a replica that claims a term.
#pragma once

namespace pollux::protocol {

enum class Verdict {
  kWon,          // the term is the claimant's: it may lead
  kLost,         // the term is another's or not to be won now: it must not lead in it
  kMember,       // as kLost, but the machine's last term names the claimant among its members: it may claim the next
  kUnreachable,  // not decided, though the claim may be registered: it must not lead yet, but ask again
};

}  // namespace pollux::protocol
