// All that a campaign leaves behind: what its report is made of.
#pragma once

#include <chrono>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "chaos/fault_schedule.h"
#include "chaos/history.h"

namespace pollux::chaos {

// What a host was at, for a time.
struct RoleSpan {
  enum class Role { kDown, kStarting, kSyncing, kBackup, kUnprotected, kProtected };
  std::size_t host = 0;
  Role role = Role::kDown;
  std::uint64_t term = 0;  // 0: not known, or none
  Moment from{};
  Moment to{};
};
[[nodiscard]] std::string name_of(RoleSpan::Role role);

struct EpochSample {
  Moment at{};
  std::size_t host = 0;
  std::uint64_t epoch = 0;
};

// Another host answered after a fault.
struct Failover {
  std::size_t from = 0;
  std::size_t to = 0;
  Moment time{};  // from the fault to the first answered request
};

struct FaultRecord {
  Fault fault;
  Moment struck{};
  Moment over{};
  std::optional<std::size_t> host;  // that it hit; none: the link
  std::optional<Moment> protected_again;
  std::optional<Failover> failover;
  bool booted_anew = false;  // the machine was lost, and the guest booted anew from a disk: who answers next has not failed over
  std::string note;
};

struct Violation {
  std::string check;
  std::string evidence;  // may be several lines
};

struct RunRecord {
  std::uint64_t seed = 0;
  std::chrono::milliseconds duration{};
  std::vector<FaultKind> kinds;
  std::string command;  // that repeats the run
  std::vector<std::string> hosts;

  Moment ended{};
  std::size_t planned = 0;  // faults
  std::vector<FaultRecord> faults;
  std::vector<RoleSpan> roles;
  std::vector<EpochSample> epochs;
  History history;
  std::size_t frames = 0;  // captured answers
  std::vector<Violation> violations;

  [[nodiscard]] bool passed() const { return violations.empty(); }
};

}  // namespace pollux::chaos
