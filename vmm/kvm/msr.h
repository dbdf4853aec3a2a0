// Numbers of the model-specific registers the VMM treats by name (Intel SDM vol. 4).
#pragma once

#include <cstdint>

namespace pollux::vmm::kvm::msr {

inline constexpr std::uint32_t kTsc = 0x10;
inline constexpr std::uint32_t kTscDeadline = 0x6e0;
inline constexpr std::uint32_t kMtrrVariableFirst = 0x200;
inline constexpr std::uint32_t kMtrrVariableLast = 0x20f;
inline constexpr std::uint32_t kMtrrDefaultType = 0x2ff;

}  // namespace pollux::vmm::kvm::msr
