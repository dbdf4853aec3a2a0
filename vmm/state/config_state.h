// A machine's configuration as part of saved state.
#pragma once

#include "vmm/machine/machine_config.h"
#include "vmm/state/machine_state.capnp.h"

namespace pollux::vmm {

// Far above what hosts have, far below what would overflow an address.
inline constexpr std::uint64_t kMaxMemory = std::uint64_t{1} << 42;

// Throws Error when the config is outside the limits of machine_config.h.
void check(const MachineConfig& config);

void write_config(const MachineConfig& config, schema::MachineConfigState::Builder state);
// Throws Error (or kj::Exception, see ReceivedMessage::read()).
MachineConfig read_config(schema::MachineConfigState::Reader state);

}  // namespace pollux::vmm
