// How the engines ask an arbiter for a term, whichever arbiter it is.
#pragma once

#include <functional>

#include "protocol/types.h"
#include "protocol/verdict.h"

namespace pollux::protocol {

// Claims the term of that machine for this replica. May take as long as the arbiter's own timeout, and is called by
// one thread at a time. Empty: there is no arbiter, and every claim counts as won.
using Claim = std::function<Verdict(const VmId&, Term)>;

}  // namespace pollux::protocol
