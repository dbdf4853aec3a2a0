// An epoch record as it arrives: staged whole before anything of it touches the image.
#pragma once

#include <chrono>
#include <utility>
#include <vector>

#include "base/bytes.h"
#include "protocol/message.h"

namespace pollux::backup {

struct EpochRecord {
  protocol::EpochId epoch;
  std::vector<std::pair<protocol::EpochPages, Bytes>> pages;
  std::vector<std::pair<protocol::EpochDiskWrites, Bytes>> disk_writes;
  Bytes state;   // the machine at the end of the epoch
  Bytes inputs;  // of a record to be executed, then there are neither pages nor state; its digest:
  Bytes digest;
  std::chrono::nanoseconds clock{};  // at the end of the epoch, and in the inputs
};

}  // namespace pollux::backup
