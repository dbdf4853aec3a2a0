// The protocol's units as types of their own: nothing at an interface is a bare integer.
#pragma once

#include <array>
#include <chrono>
#include <compare>
#include <cstddef>
#include <cstdint>
#include <ostream>
#include <string>

namespace pollux::protocol {

// The state machines read no clock: this is handed in.
using TimePoint = std::chrono::steady_clock::time_point;

// 0 is the state at the end of the first full sync; the first protected epoch is 1.
struct EpochId {
  std::uint64_t value = 0;
  auto operator<=>(const EpochId&) const = default;
  [[nodiscard]] EpochId next() const { return {value + 1}; }
};

// At most one primary per term; an arbiter decides whose it is, once.
struct Term {
  std::uint64_t value = 0;
  auto operator<=>(const Term&) const = default;
  [[nodiscard]] Term next() const { return {value + 1}; }
};

// Guest frame number: a guest-physical address divided by kPageSize.
struct PageNumber {
  std::uint64_t value = 0;
  auto operator<=>(const PageNumber&) const = default;
};

// A disk of the machine, by its index in configuration order.
struct DiskId {
  std::uint32_t value = 0;
  auto operator<=>(const DiskId&) const = default;
};

// One of the primary's backups: those of its configuration by their index, then those that join, counting up.
struct BackupId {
  std::uint32_t value = 0;
  auto operator<=>(const BackupId&) const = default;
};

// Names the logical machine; chosen at random when it is created.
struct VmId {
  std::array<std::byte, 16> value{};
  auto operator<=>(const VmId&) const = default;
};

// Names one primary, or one backup from its link's beginning to its end: a replica that was started again, or joins again,
// is another one.
struct ReplicaId {
  std::array<std::byte, 16> value{};
  auto operator<=>(const ReplicaId&) const = default;
  [[nodiscard]] static ReplicaId random();  // throws Error
};

[[nodiscard]] std::string to_string(EpochId epoch);
[[nodiscard]] std::string to_string(Term term);
[[nodiscard]] std::string to_string(PageNumber page);
[[nodiscard]] std::string to_string(DiskId disk);
[[nodiscard]] std::string to_string(BackupId backup);
[[nodiscard]] std::string to_string(const VmId& vm);            // 32 hexadecimal digits
[[nodiscard]] std::string to_string(const ReplicaId& replica);  // 32 hexadecimal digits

inline std::ostream& operator<<(std::ostream& out, EpochId epoch) { return out << to_string(epoch); }
inline std::ostream& operator<<(std::ostream& out, Term term) { return out << to_string(term); }
inline std::ostream& operator<<(std::ostream& out, PageNumber page) { return out << to_string(page); }
inline std::ostream& operator<<(std::ostream& out, DiskId disk) { return out << to_string(disk); }
inline std::ostream& operator<<(std::ostream& out, BackupId backup) { return out << to_string(backup); }
inline std::ostream& operator<<(std::ostream& out, const VmId& vm) { return out << to_string(vm); }
inline std::ostream& operator<<(std::ostream& out, const ReplicaId& replica) {
  return out << to_string(replica);
}

}  // namespace pollux::protocol
