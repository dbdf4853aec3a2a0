// A backup as the epoch engine knows it: whom the state machine wants brought in sync, and the way to it.
#pragma once

#include <memory>

#include "primary/shipper.h"
#include "protocol/types.h"

namespace pollux::primary {

struct SyncTarget {
  protocol::BackupId backup;
  std::shared_ptr<Shipper> shipper;
};

}  // namespace pollux::primary
