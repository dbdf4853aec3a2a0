#include "chaos/report.h"

#include <fmt/format.h>

#include <algorithm>
#include <boost/json.hpp>
#include <cmath>
#include <fstream>

#include "base/error.h"
#include "chaos/report_page.h"

namespace pollux::chaos {
namespace {

namespace json = boost::json;

constexpr std::chrono::milliseconds kFinestBucket{50};

double seconds(Moment moment) { return std::chrono::duration<double>(moment).count(); }
double milliseconds(Moment moment) { return std::chrono::duration<double, std::milli>(moment).count(); }
// Three digits behind the point: microseconds.
double rounded(double value) { return std::round(value * 1000) / 1000; }

Moment longest_silence(const History& history) {
  std::vector<Moment> answers;
  for (const Operation& operation : history) {
    if (operation.returned) answers.push_back(*operation.returned);
  }
  std::sort(answers.begin(), answers.end());
  Moment longest{};
  for (std::size_t i = 1; i < answers.size(); ++i) longest = std::max(longest, answers[i] - answers[i - 1]);
  return longest;
}

json::object spread_json(const Spread& spread) {
  return {{"count", spread.count},
          {"median_ms", rounded(milliseconds(spread.median))},
          {"p99_ms", rounded(milliseconds(spread.p99))},
          {"max_ms", rounded(milliseconds(spread.max))}};
}

json::object summary_json(const ReportSummary& summary) {
  return {{"requests", summary.requests},
          {"unanswered", summary.unanswered},
          {"latency", spread_json(summary.latency)},
          {"failover", spread_json(summary.failover)},
          {"reprotection", spread_json(summary.reprotection)},
          {"longest_silence_ms", rounded(milliseconds(summary.longest_silence))}};
}

json::object fault_json(const FaultRecord& record, const RunRecord& run) {
  const std::string text = to_text(record.fault);
  json::object object{{"number", record.fault.number},
                      {"kind", name_of(record.fault.kind)},
                      {"what", text.substr(text.find("  ") + 2)},
                      {"planned_s", rounded(std::chrono::duration<double>(record.fault.at).count())},
                      {"struck_s", rounded(seconds(record.struck))},
                      {"over_s", rounded(seconds(record.over))}};
  if (record.host) object["host"] = run.hosts.at(*record.host);
  if (record.protected_again) object["protected_again_s"] = rounded(seconds(*record.protected_again));
  if (record.failover) {
    object["failover"] = json::object{{"from", run.hosts.at(record.failover->from)},
                                      {"to", run.hosts.at(record.failover->to)},
                                      {"ms", rounded(milliseconds(record.failover->time))}};
  }
  if (!record.note.empty()) object["note"] = record.note;
  return object;
}

// For the page's readers: what stands behind "all promises held".
json::array checks_json() {
  return {"Linearizability of every key, exactly, over all requests of all clients.",
          "Acknowledged increments, counted against the last value.",
          "The journal on the disk: every acknowledged write, whole, once, and as its client was told; also where both hosts were "
          "lost, on the disk from which the guest was booted anew.",
          "Every answer that left a replica's TAP: one replica a term, none after a later term has answered, no request answered "
          "in two ways.",
          "Both disk images, equal after the drain.",
          "Protection and answers again after every fault.",
          "Every replica's end and log: no crash, no error and no divergence that what was done to it does not explain, no broken "
          "rule of the protocol."};
}

json::object run_json(const RunRecord& run) {
  json::object object{{"passed", run.passed()},
                      {"seed", run.seed},
                      {"duration_s", std::chrono::duration<double>(run.duration).count()},
                      {"faults_enabled", to_text(run.kinds)},
                      {"command", run.command},
                      {"ended_s", rounded(seconds(run.ended))},
                      {"hosts", json::value_from(run.hosts)},
                      {"faults_planned", run.planned},
                      {"captured_answers", run.frames},
                      {"checked", checks_json()},
                      {"summary", summary_json(summarize(run))}};
  json::array violations, faults, roles, epochs, latency;
  for (const Violation& violation : run.violations) {
    violations.push_back(json::object{{"check", violation.check}, {"evidence", violation.evidence}});
  }
  for (const FaultRecord& fault : run.faults) faults.push_back(fault_json(fault, run));
  for (const RoleSpan& span : run.roles) {
    roles.push_back(json::object{{"host", run.hosts.at(span.host)},
                                 {"role", name_of(span.role)},
                                 {"term", span.term},
                                 {"from_s", rounded(seconds(span.from))},
                                 {"to_s", rounded(seconds(span.to))}});
  }
  const std::size_t step = run.epochs.size() / kMaxBuckets + 1;
  for (std::size_t i = 0; i < run.epochs.size(); i += step) {
    const EpochSample& sample = run.epochs[i];
    epochs.push_back(json::array{rounded(seconds(sample.at)), sample.host, sample.epoch});
  }
  for (const LatencyBucket& bucket : latency_buckets(run.history, run.ended)) {
    latency.push_back(json::array{rounded(seconds(bucket.from)), bucket.count, rounded(milliseconds(bucket.median)),
                                  rounded(milliseconds(bucket.max))});
  }
  object["violations"] = std::move(violations);
  object["faults"] = std::move(faults);
  object["roles"] = std::move(roles);
  object["epochs_columns"] = {"at_s", "host", "epoch"};
  object["epochs"] = std::move(epochs);
  object["latency_columns"] = {"from_s", "count", "median_ms", "max_ms"};
  object["latency"] = std::move(latency);
  return object;
}

void write_file(const std::filesystem::path& path, const std::string& text) {
  std::ofstream file(path, std::ios::trunc | std::ios::binary);
  file << text;
  if (!file.flush()) throw errno_error("write", path.string());
}

std::string spread_text(const Spread& spread) {
  if (spread.count == 0) return "none";
  return fmt::format("{}, median {:.1f} ms, p99 {:.1f} ms, longest {:.1f} ms", spread.count, milliseconds(spread.median),
                     milliseconds(spread.p99), milliseconds(spread.max));
}

}  // namespace

Spread spread_of(std::vector<Moment> times) {
  if (times.empty()) return {};
  std::sort(times.begin(), times.end());
  const auto rank = [&](std::size_t percent) { return times[(times.size() * percent + 99) / 100 - 1]; };
  return {times.size(), rank(50), rank(99), times.back()};
}

ReportSummary summarize(const RunRecord& record) {
  ReportSummary summary;
  std::vector<Moment> latencies, failovers, reprotections;
  for (const Operation& operation : record.history) {
    if (operation.returned) latencies.push_back(*operation.returned - operation.invoked);
  }
  for (const FaultRecord& fault : record.faults) {
    if (fault.failover) failovers.push_back(fault.failover->time);
    if (fault.protected_again) reprotections.push_back(*fault.protected_again - fault.over);
  }
  summary.requests = latencies.size();
  summary.unanswered = record.history.size() - latencies.size();
  summary.latency = spread_of(std::move(latencies));
  summary.failover = spread_of(std::move(failovers));
  summary.reprotection = spread_of(std::move(reprotections));
  summary.longest_silence = longest_silence(record.history);
  return summary;
}

std::vector<LatencyBucket> latency_buckets(const History& history, Moment end) {
  const Moment width = std::max<Moment>(kFinestBucket, end / kMaxBuckets + Moment(1));
  std::vector<std::vector<Moment>> latencies(static_cast<std::size_t>(end / width) + 1);
  for (const Operation& operation : history) {
    if (!operation.returned || *operation.returned > end) continue;
    latencies[static_cast<std::size_t>(*operation.returned / width)].push_back(*operation.returned - operation.invoked);
  }
  std::vector<LatencyBucket> buckets;
  for (std::size_t i = 0; i < latencies.size(); ++i) {
    const Spread spread = spread_of(std::move(latencies[i]));
    if (spread.count > 0) buckets.push_back({width * i, spread.count, spread.median, spread.max});
  }
  return buckets;
}

std::string to_json(const RunRecord& record) { return json::serialize(run_json(record)) + "\n"; }

std::string to_html(const RunRecord& record) {
  std::string data = json::serialize(run_json(record));
  // Nothing in the data may end the script it stands in.
  for (std::size_t at = 0; (at = data.find('<', at)) != std::string::npos;) data.replace(at, 1, "\\u003c");
  std::string page = kReportPage;
  const std::string mark = kReportDataMark;
  const std::size_t at = page.find(mark);
  POLLUX_ASSERT(at != std::string::npos);
  return page.replace(at, mark.size(), data);
}

std::string to_text(const RunRecord& record) {
  const ReportSummary summary = summarize(record);
  std::string text;
  const auto line = [&](const std::string& name, const std::string& value) { text += fmt::format("{:<16}{}\n", name, value); };
  line("faults", fmt::format("{} of {}", record.faults.size(), record.planned));
  line("failovers", spread_text(summary.failover));
  line("re-protection", spread_text(summary.reprotection));
  line("requests", fmt::format("{}; {} never answered", spread_text(summary.latency), summary.unanswered));
  line("silence", fmt::format("{:.1f} ms at most between two answers", milliseconds(summary.longest_silence)));
  line("answers seen", fmt::format("{} on the replicas' TAPs", record.frames));
  line("violations", std::to_string(record.violations.size()));
  if (!record.passed()) {
    line("seed", std::to_string(record.seed));
    line("the same again", record.command);
  }
  text.pop_back();
  return text;
}

void write_report(const RunRecord& record, const std::filesystem::path& folder) {
  write_file(folder / "report.json", to_json(record));
  write_file(folder / "report.html", to_html(record));
}

}  // namespace pollux::chaos
