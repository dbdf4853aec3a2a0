#include "chaos/fault_schedule.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <random>
#include <regex>
#include <sstream>
#include <utility>

#include "base/error.h"

namespace pollux::chaos {
namespace {

using std::chrono::milliseconds;

constexpr std::array kNames{
    std::pair{FaultKind::kKill, "kill"},           std::pair{FaultKind::kPause, "pause"},
    std::pair{FaultKind::kPartition, "partition"}, std::pair{FaultKind::kOneWay, "one-way"},
    std::pair{FaultKind::kLatency, "latency"},     std::pair{FaultKind::kBandwidth, "bandwidth"},
    std::pair{FaultKind::kCorrupt, "corrupt"},     std::pair{FaultKind::kDisconnect, "disconnect"},
    std::pair{FaultKind::kArbiter, "arbiter"},     std::pair{FaultKind::kKillInSync, "kill-in-sync"},
    std::pair{FaultKind::kSwitchover, "switchover"}, std::pair{FaultKind::kKillInSwitchover, "kill-in-switchover"},
    std::pair{FaultKind::kDiskError, "disk-error"}, std::pair{FaultKind::kDiskFull, "disk-full"},
    std::pair{FaultKind::kDiskSlow, "disk-slow"},  std::pair{FaultKind::kMemory, "memory"},
    std::pair{FaultKind::kDiskReadError, "disk-read-error"}, std::pair{FaultKind::kKillInPromotion, "kill-in-promotion"},
};

// The standard's distributions differ from library to library; this does not.
class Random {
 public:
  explicit Random(std::uint64_t seed) : engine_(seed) {}
  std::uint64_t below(std::uint64_t bound) { return engine_() % bound; }
  milliseconds between(milliseconds least, milliseconds most) {
    return least + milliseconds(below(static_cast<std::uint64_t>((most - least).count()) + 1));
  }
  bool coin() { return below(2) == 0; }

 private:
  std::mt19937_64 engine_;
};

// Some shorter than a replica's patience, some longer (CampaignOptions::timeout).
milliseconds outage(Random& random) { return random.between(milliseconds(100), milliseconds(3000)); }

Fault make_fault(FaultKind kind, Random& random) {
  Fault fault;
  fault.kind = kind;
  switch (kind) {
    case FaultKind::kKill: fault.target = random.below(3) == 0 ? FaultTarget::kBackup : FaultTarget::kPrimary; break;
    case FaultKind::kPause:
      fault.target = random.below(3) == 0 ? FaultTarget::kBackup : FaultTarget::kPrimary;
      fault.lasts = outage(random);
      break;
    case FaultKind::kPartition:
      fault.target = FaultTarget::kLink;
      fault.lasts = outage(random);
      break;
    case FaultKind::kOneWay:
      fault.target = FaultTarget::kLink;
      fault.lasts = outage(random);
      fault.direction = random.coin() ? Direction::kForward : Direction::kBackward;
      break;
    case FaultKind::kLatency:
      fault.target = FaultTarget::kLink;
      fault.lasts = random.between(milliseconds(500), milliseconds(3000));
      fault.latency = random.between(milliseconds(5), milliseconds(150));
      break;
    case FaultKind::kBandwidth:
      fault.target = FaultTarget::kLink;
      fault.lasts = random.between(milliseconds(500), milliseconds(3000));
      fault.bytes_per_second = std::uint64_t{128 << 10} << random.below(6);  // to 4 MiB/s
      break;
    case FaultKind::kCorrupt:
      fault.target = FaultTarget::kLink;
      fault.direction = random.coin() ? Direction::kForward : Direction::kBackward;
      break;
    case FaultKind::kDisconnect: fault.target = FaultTarget::kLink; break;
    case FaultKind::kArbiter:
      fault.target = random.coin() ? FaultTarget::kPrimary : FaultTarget::kLink;
      fault.lasts = random.between(milliseconds(1000), milliseconds(3000));
      break;
    case FaultKind::kKillInSync: fault.target = FaultTarget::kBackup; break;
    case FaultKind::kSwitchover: break;
    case FaultKind::kKillInSwitchover:
      fault.target = random.coin() ? FaultTarget::kPrimary : FaultTarget::kBackup;
      fault.after = random.between(milliseconds(0), milliseconds(60));
      break;
    case FaultKind::kKillInPromotion: fault.after = random.between(milliseconds(0), milliseconds(40)); break;
    case FaultKind::kDiskError:
    case FaultKind::kDiskFull:
    case FaultKind::kDiskReadError:
    case FaultKind::kMemory:
      fault.target = random.coin() ? FaultTarget::kPrimary : FaultTarget::kBackup;
      fault.lasts = random.between(milliseconds(500), milliseconds(2000));
      break;
    case FaultKind::kDiskSlow:
      fault.target = random.coin() ? FaultTarget::kPrimary : FaultTarget::kBackup;
      fault.lasts = random.between(milliseconds(500), milliseconds(3000));
      fault.latency = random.between(milliseconds(20), milliseconds(600));
      break;
  }
  return fault;
}

std::string target_text(const Fault& fault) {
  const char* way = fault.direction == Direction::kForward ? "backup to primary" : "primary to backup";
  switch (fault.kind) {
    case FaultKind::kOneWay:
    case FaultKind::kCorrupt: return fmt::format("link, {}", way);
    case FaultKind::kLatency: return fmt::format("link, {} ms each way", fault.latency.count());
    case FaultKind::kBandwidth: return fmt::format("link, {} KiB/s each way", fault.bytes_per_second >> 10);
    case FaultKind::kArbiter: return fault.target == FaultTarget::kLink ? "and the link cut" : "and the primary killed";
    case FaultKind::kKillInSwitchover: return fmt::format("{}, {} ms after the order", name_of(fault.target), fault.after.count());
    case FaultKind::kKillInPromotion: return fmt::format("primary, and the backup {} ms after its claim", fault.after.count());
    case FaultKind::kDiskSlow: return fmt::format("{}, {} ms for each flush", name_of(fault.target), fault.latency.count());
    default: return name_of(fault.target);
  }
}

}  // namespace

std::string name_of(FaultKind kind) {
  for (const auto& [known, name] : kNames) {
    if (known == kind) return name;
  }
  return "?";
}

std::string name_of(FaultTarget target) {
  switch (target) {
    case FaultTarget::kPrimary: return "primary";
    case FaultTarget::kBackup: return "backup";
    case FaultTarget::kLink: return "link";
  }
  return "?";
}

std::vector<FaultKind> parse_fault_kinds(const std::string& text) {
  std::vector<FaultKind> kinds;
  std::istringstream words(text);
  for (std::string word; std::getline(words, word, ',');) {
    for (const auto& [kind, name] : kNames) {
      const bool named = word == name || word == "all";
      if (named && std::find(kinds.begin(), kinds.end(), kind) == kinds.end()) kinds.push_back(kind);
    }
    const bool known = word == "all" || std::any_of(kNames.begin(), kNames.end(), [&](const auto& entry) { return word == entry.second; });
    if (!known) {
      std::vector<std::string> names;
      for (const auto& [kind, name] : kNames) names.emplace_back(name);
      throw UsageError(fmt::format("'{}' is no fault; there are {} and all", word, fmt::join(names, ", ")));
    }
  }
  if (kinds.empty()) throw UsageError("no fault is named");
  std::sort(kinds.begin(), kinds.end());  // their order in the text is no difference
  return kinds;
}

std::string to_text(const std::vector<FaultKind>& kinds) {
  std::vector<std::string> names;
  for (const FaultKind kind : kinds) names.push_back(name_of(kind));
  return fmt::format("{}", fmt::join(names, ","));
}

std::pair<std::size_t, std::size_t> parse_fault_range(const std::string& text) {
  static const std::regex kRange(R"((\d{1,6})(?:\.\.(\d{1,6}))?)");
  std::smatch match;
  if (std::regex_match(text, match, kRange)) {
    const std::size_t first = std::stoul(match[1]), last = match[2].matched ? std::stoul(match[2]) : first;
    if (first >= 1 && first <= last && last <= kMaxFaults) return {first, last};
  }
  throw UsageError(fmt::format("expected N or N..M, from 1 to {}", kMaxFaults));
}

std::string to_text(const Fault& fault) {
  const auto seconds = [](milliseconds time) { return std::chrono::duration<double>(time).count(); };
  std::string text = fmt::format("{:.3f} s  {} {}", seconds(fault.at), name_of(fault.kind), target_text(fault));
  if (fault.lasts.count() > 0) text += fmt::format(", for {:.3f} s", seconds(fault.lasts));
  return text;
}

std::vector<Fault> make_schedule(const ScheduleOptions& options) {
  POLLUX_ASSERT(!options.kinds.empty() && options.shortest_gap <= options.longest_gap);
  Random random(options.seed);
  std::vector<Fault> schedule;
  milliseconds now{0};
  while (schedule.size() < kMaxFaults) {
    now += random.between(options.shortest_gap, options.longest_gap);
    Fault fault = make_fault(options.kinds[random.below(options.kinds.size())], random);
    fault.at = now;
    now += fault.lasts;
    if (now >= options.duration) break;
    fault.number = schedule.size() + 1;
    schedule.push_back(fault);
  }
  std::erase_if(schedule, [&](const Fault& fault) { return fault.number < options.first || fault.number > options.last; });
  const milliseconds left_out = schedule.empty() || options.first == 1 ? milliseconds(0) : schedule.front().at - options.shortest_gap;
  for (Fault& fault : schedule) fault.at -= left_out;
  return schedule;
}

}  // namespace pollux::chaos
