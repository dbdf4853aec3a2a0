#include "cli/memory_sizes.h"

#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <limits>
#include <map>

#include "backup/replication_session.h"
#include "base/error.h"

namespace pollux::cli {
namespace {

constexpr std::uint64_t kBackupStaging = 4096 * kMiB;

std::uint64_t host_memory() {
  return static_cast<std::uint64_t>(::sysconf(_SC_PHYS_PAGES)) * static_cast<std::uint64_t>(::sysconf(_SC_PAGESIZE));
}

std::string in_mib(std::uint64_t bytes) { return std::to_string(bytes / kMiB) + "M"; }

// 0: no such unit.
std::uint64_t factor_of(const std::string& unit) {
  static const std::map<std::string, int> kShifts{{"", 0}, {"K", 10}, {"M", 20}, {"G", 30}, {"T", 40}};
  const auto found = kShifts.find(unit);
  return found == kShifts.end() ? 0 : std::uint64_t{1} << found->second;
}

}  // namespace

std::uint64_t parse_size(const std::string& option, const std::string& text) {
  std::uint64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  const std::uint64_t factor = factor_of({end, text.data() + text.size()});
  if (error != std::errc{} || factor == 0 || value == 0 || value > std::numeric_limits<std::uint64_t>::max() / factor) {
    throw UsageError(option + " " + text + ": expected a size such as 512M or 2G");
  }
  return value * factor;
}

std::uint64_t parse_memory_size(const std::string& option, const std::string& text, std::uint64_t at_least) {
  const std::uint64_t bytes = parse_size(option, text);
  if (bytes < at_least) throw UsageError(option + " " + text + ": expected at least " + in_mib(at_least));
  if (bytes > host_memory()) throw UsageError(option + " " + text + ": this host has " + in_mib(host_memory()) + " of memory");
  return bytes;
}

std::uint64_t parse_backup_staging(const std::string& option, const std::string& text) {
  if (text.empty()) return std::min(kBackupStaging, host_memory());
  return parse_memory_size(option, text, kSmallestGuest + backup::kRecordMargin);
}

}  // namespace pollux::cli
