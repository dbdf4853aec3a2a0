// Files the guest starts from.
#pragma once

#include <string>

#include "base/bytes.h"

namespace pollux::vmm::boot {

// The whole file. Throws UsageError "<option> <path>: why": missing, not a regular file, empty, or above
// `limit`.
Bytes read_boot_file(const std::string& option, const std::string& path, std::uint64_t limit);

}  // namespace pollux::vmm::boot
