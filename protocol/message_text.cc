// Messages as one line of text, for logs, traces and the tests' scripts.
#include <fmt/format.h>

#include "protocol/message.h"

namespace pollux::protocol {
namespace {

std::string pages_text(const std::vector<PageRun>& runs) {
  std::uint64_t pages = 0;
  std::uint64_t zero_pages = 0;
  for (const PageRun& run : runs) (run.zero ? zero_pages : pages) += run.count;
  return fmt::format("pages {}, zero {}", pages, zero_pages);
}

std::string text(const Hello& m) {
  return fmt::format("version {}, vm {}, term {}, {}, disks {}", m.version, to_string(m.vm), m.term.value,
                     to_string(m.strategy), m.disk_bytes.size());
}
std::string text(const Welcome& m) { return fmt::format("version {}, term {}", m.version, m.term.value); }
std::string text(const Refuse& m) { return m.reason; }
std::string text(const DiskDigestRequest& m) {
  return fmt::format("disk {}, first {}, count {}", m.disk.value, m.first, m.count);
}
std::string text(const DiskDigests& m) {
  return fmt::format("disk {}, first {}, count {}", m.disk.value, m.first, m.count);
}
std::string text(const DiskBlocks& m) {
  return fmt::format("disk {}, extents {}", m.disk.value, m.extents.size());
}
std::string text(const SyncPages& m) { return pages_text(m.runs); }
std::string text(const SyncMark& m) { return std::to_string(m.number); }
std::string text(const SyncEnd& m) {
  return fmt::format("{}, pages {}, zero {}, disk {}, state {}", m.epoch.value, m.pages, m.zero_pages,
                     m.disk_extents, m.state_bytes);
}
std::string text(const EpochOpen& m) {
  return fmt::format("{}{}", m.epoch.value, m.kind == RecordKind::kInputs ? ", inputs" : "");
}
std::string text(const EpochInputs& m) { return fmt::format("{}, bytes {}", m.epoch.value, m.bytes); }
std::string text(const MachineState& m) { return fmt::format("{}, bytes {}", m.epoch.value, m.bytes); }
std::string text(const EpochDigest& m) { return fmt::format("{}, bytes {}", m.epoch.value, m.bytes); }
std::string text(const EpochPages& m) { return fmt::format("{}, {}", m.epoch.value, pages_text(m.runs)); }
std::string text(const EpochDiskWrites& m) {
  return fmt::format("{}, operations {}", m.epoch.value, m.operations.size());
}
std::string text(const EpochClose& m) {
  if (m.input_bytes != 0) {
    return fmt::format("{}, inputs {}, digest {}{}", m.epoch.value, m.input_bytes, m.digest_bytes,
                       m.flushed ? ", flushed" : "");
  }
  return fmt::format("{}, pages {}, zero {}, disk {}{}, state {}", m.epoch.value, m.pages, m.zero_pages,
                     m.disk_operations, m.flushed ? ", flushed" : "", m.state_bytes);
}
std::string text(const NewTerm& m) { return to_string(m.term); }
std::string text(const Ack& m) { return to_string(m.epoch); }
std::string text(const Executed& m) { return to_string(m.epoch); }
std::string text(const Divergence& m) {
  return fmt::format("{}, pages {}", m.epoch.value, m.all_pages ? std::string("all") : std::to_string(m.pages));
}
std::string text(const Heartbeat& m) { return std::to_string(m.sequence); }
std::string text(const Goodbye& m) {
  return m.text.empty() ? std::string(to_string(m.reason))
                        : fmt::format("{}: {}", to_string(m.reason), m.text);
}
std::string text(const HandOver& m) { return to_string(m.epoch); }

}  // namespace

std::string_view name_of(const Message& message) {
  static constexpr std::string_view kNames[] = {
      "Hello",           "Welcome",    "Refuse",   "DiskDigestRequest", "DiskDigests",
      "DiskBlocks",      "SyncPages",  "SyncMark", "SyncEnd",          "EpochOpen",   "EpochPages",
      "EpochDiskWrites", "EpochClose", "NewTerm",  "Ack",              "Heartbeat",   "Goodbye",
      "HandOver",        "EpochInputs", "EpochDigest", "Executed",       "Divergence",
      "MachineState"};
  static_assert(std::size(kNames) == std::variant_size_v<Message>);
  return kNames[message.index()];
}

std::string to_string(const Message& message) {
  return fmt::format("{}({})", name_of(message), std::visit([](const auto& m) { return text(m); }, message));
}

std::string_view to_string(GoodbyeReason reason) {
  switch (reason) {
    case GoodbyeReason::kPoweredOff: return "powered off";
    case GoodbyeReason::kReset: return "reset";
    case GoodbyeReason::kStopped: return "stopped";
    case GoodbyeReason::kDropped: return "dropped";
    case GoodbyeReason::kTookOver: return "took over";
  }
  return "unknown";
}

std::string_view to_string(Strategy strategy) {
  switch (strategy) {
    case Strategy::kCopy: return "copy";
    case Strategy::kLockstep: return "lockstep";
  }
  return "unknown";
}

}  // namespace pollux::protocol
