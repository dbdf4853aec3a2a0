#include "faults.h"

#include <fmt/format.h>

namespace pollux::sim {

using namespace std::chrono_literals;

namespace {

struct Weighted {
  FaultKind kind;
  unsigned weight;
};

constexpr Weighted kWeights[] = {
    {FaultKind::kCrash, 12},       {FaultKind::kPowerLoss, 10},         {FaultKind::kPause, 16},
    {FaultKind::kBreakLink, 16},   {FaultKind::kStallOneWay, 14},       {FaultKind::kStallBothWays, 12},
    {FaultKind::kDelay, 6},        {FaultKind::kSlowDisk, 8},           {FaultKind::kNoMemory, 4},
    {FaultKind::kArbiterDown, 4},  {FaultKind::kArbiterUnreachable, 8}, {FaultKind::kArbiterSlow, 6},
    {FaultKind::kOperatorStop, 4}, {FaultKind::kSwitchover, 12},        {FaultKind::kRelease, 4},
    {FaultKind::kLoss, 8},         {FaultKind::kRepetition, 5},         {FaultKind::kReordering, 8},
    {FaultKind::kFrameLost, 3},    {FaultKind::kFrameRepeated, 3},      {FaultKind::kFrameSwapped, 3},
    {FaultKind::kDiskFails, 8},
};

FaultKind draw_kind(Random& random) {
  unsigned total = 0;
  for (const Weighted& one : kWeights) total += one.weight;
  std::uint64_t at = random.below(total);
  for (const Weighted& one : kWeights) {
    if (at < one.weight) return one.kind;
    at -= one.weight;
  }
  return FaultKind::kCrash;
}

Moment draw_moment(Random& random) {
  constexpr Moment kMoments[] = {Moment::kSyncEnd, Moment::kClaim, Moment::kClaim, Moment::kNewTerm,
                                 Moment::kPromote, Moment::kHandOver, Moment::kHandOver};
  return random.one_in(3) ? kMoments[random.below(std::size(kMoments))] : Moment::kTime;
}

// Short ones to be survived, long ones to be noticed.
Time draw_length(Random& random) {
  return random.one_in(2) ? random.between(10ms, 200ms) : random.between(200ms, 1500ms);
}

}  // namespace

std::vector<Fault> draw_faults(Random& random, std::size_t backups, Time until) {
  std::vector<Fault> faults;
  // Most come close to another: what each alone cannot do, two in a row may.
  Time cluster = random.between(20ms, until);
  for (std::uint64_t count = random.below(random.one_in(3) ? 13 : 6); count > 0; --count) {
    if (random.one_in(3)) cluster = random.between(20ms, until);
    Fault fault;
    fault.kind = draw_kind(random);
    fault.moment = draw_moment(random);
    fault.length = draw_length(random);
    fault.after = fault.moment == Moment::kTime ? std::min(until, cluster + random.between(0ms, 500ms))
                                                : random.between(0ms, random.one_in(2) ? 5ms : 100ms);
    // The first primary's as often as all others together.
    fault.site = random.one_in(2) ? 0 : 1 + random.below(backups);
    fault.backup = random.below(backups);
    if (fault.kind == FaultKind::kDiskFails && random.one_in(2)) {
      fault.moment = Moment::kLastRecords;
      fault.after = random.between(0ms, 1ms);
      fault.site = 1 + random.below(backups);
    }
    fault.direction = random.one_in(2) ? Direction::kToBackup : Direction::kToPrimary;
    faults.push_back(fault);
  }
  return faults;
}

std::string to_string(const Fault& fault) {
  const auto ms = std::chrono::duration_cast<std::chrono::milliseconds>(fault.length).count();
  const char* way = fault.direction == Direction::kToBackup ? "to the backup" : "to the primary";
  switch (fault.kind) {
    case FaultKind::kCrash: return fmt::format("the replica of site {} crashes", fault.site);
    case FaultKind::kPowerLoss: return fmt::format("the replica of site {} loses power", fault.site);
    case FaultKind::kPause: return fmt::format("the replica of site {} is paused for {} ms", fault.site, ms);
    case FaultKind::kBreakLink: return fmt::format("the link of backup {} breaks", fault.backup);
    case FaultKind::kStallOneWay: return fmt::format("the link of backup {} stalls {} for {} ms", fault.backup, way, ms);
    case FaultKind::kStallBothWays: return fmt::format("the link of backup {} stalls for {} ms", fault.backup, ms);
    case FaultKind::kDelay: return fmt::format("the link of backup {} is slow for {} ms", fault.backup, ms);
    case FaultKind::kLoss: return fmt::format("the link of backup {} loses segments for {} ms", fault.backup, ms);
    case FaultKind::kRepetition: return fmt::format("the link of backup {} repeats segments for {} ms", fault.backup, ms);
    case FaultKind::kReordering: return fmt::format("the link of backup {} reorders segments for {} ms", fault.backup, ms);
    case FaultKind::kFrameLost: return fmt::format("the link of backup {} loses a frame {}", fault.backup, way);
    case FaultKind::kFrameRepeated: return fmt::format("the link of backup {} repeats a frame {}", fault.backup, way);
    case FaultKind::kFrameSwapped: return fmt::format("the link of backup {} swaps two frames {}", fault.backup, way);
    case FaultKind::kDiskFails: return fmt::format("the replica of site {}'s disk fails", fault.site);
    case FaultKind::kSlowDisk:
      return fmt::format("the replica of site {}'s disk is slow for {} ms", fault.site, ms);
    case FaultKind::kNoMemory: return fmt::format("backup {} has no memory", fault.backup);
    case FaultKind::kArbiterUnreachable:
      return fmt::format("the replica of site {} cannot reach the arbiter for {} ms", fault.site, ms);
    case FaultKind::kArbiterDown: return fmt::format("nobody can reach the arbiter for {} ms", ms);
    case FaultKind::kArbiterSlow: return fmt::format("the arbiter is slow for {} ms", ms);
    case FaultKind::kSwitchover: return fmt::format("the operator wants backup {} to lead", fault.backup);
    case FaultKind::kRelease: return fmt::format("the operator gives backup {} up", fault.backup);
    case FaultKind::kOperatorStop: return fmt::format("the operator stops the replica of site {}", fault.site);
  }
  return "unknown";
}

}  // namespace pollux::sim
