// The journal that the key-value server keeps on its disk (tests/guests/lockstep/kv_protocol.h), as it is found in a
// replica's image: the last witness, when everybody else is gone.
#pragma once

#include <string>
#include <vector>

#include "chaos/history.h"

namespace pollux::chaos {

// Its records are whole and without a gap, and no write was carried out twice; every acknowledged write whose record was not
// overwritten since is there, with what its client was told. One line for each that is not so, up to a few.
// `crashed`: the machine was lost while the server wrote; of its last batch, which nobody was told of, records may be missing.
[[nodiscard]] std::vector<std::string> check_journal(const History& history, const std::string& image, bool crashed = false);

}  // namespace pollux::chaos
