// An arbiter's answer to a replica that claims a term.
#pragma once

namespace pollux::protocol {

enum class Verdict {
  kWon,          // the term is the claimant's: it may lead
  kLost,         // the term is another's or passed by: it must not lead, now or later
  kUnreachable,  // not decided now, though the claim may have been registered: it must not lead yet; ask
                 // again
};

}  // namespace pollux::protocol
