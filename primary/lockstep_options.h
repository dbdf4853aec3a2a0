// How a primary runs its guest in lockstep.
#pragma once

#include <cstdint>

#include "vmm/machine/machine_config.h"

namespace pollux::primary {

// What the guest waits for.
enum class CommitRule {
  kOnOutput,    // it runs on, and its outputs are held until their epoch is committed
  kEveryEpoch,  // an epoch begins when the one before is committed
};

struct LockstepOptions {
  vmm::EpochLength epoch_length;
  CommitRule commit_rule = CommitRule::kOnOutput;
  std::uint64_t max_lag = 64;  // epochs that a backup may be behind in executing
};

inline constexpr std::uint64_t kMaxLagLimit = 512;  // half of what ReplicaDriver may have queued

}  // namespace pollux::primary
