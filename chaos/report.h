// A campaign's record as report.json, as one HTML page that needs nothing else, and as a few lines for a terminal.
#pragma once

#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "chaos/run_record.h"

namespace pollux::chaos {

// Of times; by the nearest rank.
struct Spread {
  std::size_t count = 0;
  Moment median{};
  Moment p99{};
  Moment max{};
};
[[nodiscard]] Spread spread_of(std::vector<Moment> times);

struct ReportSummary {
  std::size_t requests = 0;  // answered
  std::size_t unanswered = 0;
  Spread latency;       // of requests
  Spread failover;      // from the fault to the first answered request
  Spread reprotection;  // from the end of a fault to protection
  Moment longest_silence{};  // in which no client was answered
};
[[nodiscard]] ReportSummary summarize(const RunRecord& record);

// The latency of requests for a chart: at most kMaxBuckets, whatever the history's length.
struct LatencyBucket {
  Moment from{};
  std::size_t count = 0;
  Moment median{};
  Moment max{};
};
inline constexpr std::size_t kMaxBuckets = 3000;
[[nodiscard]] std::vector<LatencyBucket> latency_buckets(const History& history, Moment end);

[[nodiscard]] std::string to_json(const RunRecord& record);
[[nodiscard]] std::string to_html(const RunRecord& record);
[[nodiscard]] std::string to_text(const RunRecord& record);

// report.json and report.html, into a folder that is there. Throws Error.
void write_report(const RunRecord& record, const std::filesystem::path& folder);

}  // namespace pollux::chaos
