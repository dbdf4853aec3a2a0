// What the arbiter of a campaign has decided, as its directory shows it (docs/arbitration.md).
#pragma once

#include <cstddef>
#include <filesystem>

namespace pollux::chaos {

// The terms of all machines that somebody has won. Throws Error.
[[nodiscard]] std::size_t count_claims(const std::filesystem::path& directory);

}  // namespace pollux::chaos
