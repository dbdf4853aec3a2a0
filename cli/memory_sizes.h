// Sizes of what is to lie in this host's memory.
#pragma once

#include <cstdint>
#include <string>

namespace pollux::cli {

inline constexpr std::uint64_t kMiB = std::uint64_t{1} << 20;
// Less could not hold one message.
inline constexpr std::uint64_t kSmallestBuffer = 4 * kMiB;
inline constexpr std::uint64_t kSmallestGuest = 16 * kMiB;

// "512M", "2G", "1T", "65536K" or plain bytes. Throws UsageError naming `option`.
[[nodiscard]] std::uint64_t parse_size(const std::string& option, const std::string& text);

// The same, at least so much and no more than this host has (MemTotal of /proc/meminfo, whatever is in use of it now).
[[nodiscard]] std::uint64_t parse_memory_size(const std::string& option, const std::string& text, std::uint64_t at_least);

// What a backup may stage: one record may hold the whole guest. Empty text: kBackupStaging, or what this host has.
[[nodiscard]] std::uint64_t parse_backup_staging(const std::string& option, const std::string& text);

}  // namespace pollux::cli
