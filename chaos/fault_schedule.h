// Which faults strike when: a list made from a seed, the same for the same seed and options on every machine.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "chaos/link_proxy.h"

namespace pollux::chaos {

enum class FaultKind : std::uint8_t {
  kKill,        // SIGKILL
  kPause,       // SIGSTOP, later SIGCONT
  kPartition,   // the link stalls in both directions
  kOneWay,      // the link stalls in one direction
  kLatency,     // everything on the link arrives later
  kBandwidth,   // the link is slow
  kCorrupt,     // one bit of what passes is flipped
  kDisconnect,  // the link's connections break
  kArbiter,     // the arbiter cannot be reached, and while it is gone the primary is killed or the link cut
  kKillInSync,  // SIGKILL to the backup, and again to the one that joins next, in the midst of its full sync
  kSwitchover,  // no fault: the primary is told to hand over
  kKillInSwitchover,  // the same, and one of the two is killed meanwhile
  kDiskError,   // EIO from a replica's image
  kDiskFull,    // ENOSPC
  kDiskSlow,    // each fdatasync takes longer
  kMemory,      // a replica is given no more memory
  kDiskReadError,    // EIO when a replica's image is read
  kKillInPromotion,  // SIGKILL to the primary, and to the backup when it has won the term
};

enum class FaultTarget : std::uint8_t { kPrimary, kBackup, kLink };

struct Fault {
  std::size_t number = 1;          // in its schedule
  std::chrono::milliseconds at{};  // since the start of the campaign; later when the machine is not protected then
  FaultKind kind = FaultKind::kKill;
  FaultTarget target = FaultTarget::kPrimary;
  std::chrono::milliseconds lasts{};           // 0: an instant
  std::chrono::milliseconds after{};           // of kill-in-switchover: from the order to the kill; of -promotion: from the claim
  Direction direction = Direction::kForward;   // of one-way and corrupt: forward is from the backup to the primary
  std::chrono::milliseconds latency{};         // of latency and disk-slow
  std::uint64_t bytes_per_second = 0;          // of bandwidth
  bool operator==(const Fault&) const = default;
};

[[nodiscard]] std::string name_of(FaultKind kind);
[[nodiscard]] std::string name_of(FaultTarget target);
// "kill,pause,..."; "all" is all of them. Throws UsageError naming what is no fault.
[[nodiscard]] std::vector<FaultKind> parse_fault_kinds(const std::string& text);
[[nodiscard]] std::string to_text(const std::vector<FaultKind>& kinds);
// "12.345 s  one-way link, backup to primary, for 1.200 s"
[[nodiscard]] std::string to_text(const Fault& fault);
// "57..60" or "59": the first number and the last. Throws UsageError.
[[nodiscard]] std::pair<std::size_t, std::size_t> parse_fault_range(const std::string& text);

inline constexpr std::size_t kMaxFaults = 100'000;

struct ScheduleOptions {
  std::uint64_t seed = 1;
  std::chrono::milliseconds duration{60'000};
  std::vector<FaultKind> kinds;
  // From the end of a fault to the next one, at least and at most.
  std::chrono::milliseconds shortest_gap{1000};
  std::chrono::milliseconds longest_gap{4000};
  // Only the faults of these numbers, from 1 on: what comes before is left out, the times between them stay.
  std::size_t first = 1;
  std::size_t last = kMaxFaults;
};

// Ascending in time, all over before `duration` is. Every kind is equally likely.
[[nodiscard]] std::vector<Fault> make_schedule(const ScheduleOptions& options);

}  // namespace pollux::chaos
