#include "primary/statistics.h"

#include <fmt/format.h>

#include <algorithm>
#include <boost/json.hpp>
#include <cstdio>
#include <fstream>

#include "base/error.h"

namespace pollux::primary {
namespace {

std::uint64_t microseconds(std::chrono::nanoseconds duration) {
  return static_cast<std::uint64_t>(std::chrono::duration_cast<std::chrono::microseconds>(duration).count());
}

Quantiles quantiles(const Histogram& histogram) {
  return {histogram.quantile(0.5), histogram.quantile(0.99), histogram.max()};
}

void add(boost::json::object& object, const std::string& name, const Quantiles& values) {
  object[name + "_p50"] = values.p50;
  object[name + "_p99"] = values.p99;
  object[name + "_max"] = values.max;
}

}  // namespace

void Statistics::epoch_closed(const EpochFigures& figures) {
  const std::lock_guard lock(mutex_);
  closed_ = figures.epoch;
  pause_us_.record(microseconds(figures.pause));
  dirty_pages_.record(figures.dirty_pages);
  bytes_sent_.record(figures.bytes_sent);
}

void Statistics::epoch_committed(protocol::EpochId epoch, std::chrono::nanoseconds latency) {
  const std::lock_guard lock(mutex_);
  committed_ = epoch;
  commit_us_.record(microseconds(latency));
}

void Statistics::set_protection(std::string protection) {
  const std::lock_guard lock(mutex_);
  protection_ = std::move(protection);
}

void Statistics::lockstep_epoch(std::uint64_t lag) {
  const std::lock_guard lock(mutex_);
  lag_.record(lag);
}

void Statistics::diverged() {
  const std::lock_guard lock(mutex_);
  ++divergences_;
}

void Statistics::set_backups(std::size_t connected) {
  const std::lock_guard lock(mutex_);
  backups_ = connected;
}

void Statistics::set_link_bytes(std::uint64_t bytes) {
  const std::lock_guard lock(mutex_);
  link_bytes_ = bytes;
}

void Statistics::sync_progress(std::uint64_t sent_bytes, std::uint64_t total_bytes) {
  const std::lock_guard lock(mutex_);
  sync_sent_ = sent_bytes;
  sync_total_ = total_bytes;
}

Summary Statistics::summary() const {
  const std::lock_guard lock(mutex_);
  return {.protection = protection_,
          .backups = backups_,
          .sync_bytes = sync_sent_,
          .epochs = pause_us_.count(),
          .closed = closed_,
          .committed = committed_,
          .pause_us = quantiles(pause_us_),
          .dirty_pages = quantiles(dirty_pages_),
          .epoch_bytes = quantiles(bytes_sent_),
          .commit_latency_us = quantiles(commit_us_),
          .lockstep = lag_.count() > 0,
          .lag_epochs = quantiles(lag_),
          .divergences = divergences_,
          .dirty_pages_total = dirty_pages_.sum(),
          .bytes_total = bytes_sent_.sum(),
          .link_bytes_total = link_bytes_};
}

std::string Statistics::status_line() const {
  const Summary now = summary();
  if (now.protection == "syncing") {
    const std::lock_guard lock(mutex_);
    const double percent =
        sync_total_ == 0 ? 0 : 100.0 * static_cast<double>(sync_sent_) / static_cast<double>(sync_total_);
    return fmt::format("syncing: {} of {} MiB ({:.0f}%)", sync_sent_ >> 20, sync_total_ >> 20, std::min(percent, 100.0));
  }
  if (now.lockstep) {
    return fmt::format("{} by {} in lockstep: epoch {} | lag {} p99 {} | {} KiB of log | commit {} us | {} divergence(s)",
                       now.protection, now.backups, now.committed.value, now.lag_epochs.p50, now.lag_epochs.p99,
                       now.bytes_total >> 10, now.commit_latency_us.p50, now.divergences);
  }
  return fmt::format("{} by {}: epoch {} | pause {} us p99 {} | {} dirty pages | commit {} us", now.protection,
                     now.backups, now.committed.value, now.pause_us.p50, now.pause_us.p99, now.dirty_pages.p50,
                     now.commit_latency_us.p50);
}

std::string Statistics::json() const {
  const Summary now = summary();
  boost::json::object object;
  object["protection"] = now.protection;
  object["backups"] = now.backups;
  object["sync_bytes"] = now.sync_bytes;
  object["epochs"] = now.epochs;
  object["epoch_closed"] = now.closed.value;
  object["epoch_committed"] = now.committed.value;
  add(object, "epoch_pause_us", now.pause_us);
  add(object, "dirty_pages", now.dirty_pages);
  add(object, "epoch_bytes", now.epoch_bytes);
  add(object, "commit_latency_us", now.commit_latency_us);
  if (now.lockstep) {
    add(object, "lag_epochs", now.lag_epochs);
    object["divergences"] = now.divergences;
    object["log_bytes_total"] = now.bytes_total;
  }
  object["dirty_pages_total"] = now.dirty_pages_total;
  object["bytes_total"] = now.bytes_total;
  object["link_bytes_total"] = now.link_bytes_total;
  return boost::json::serialize(object) + "\n";
}

void Statistics::write(const std::string& path) const {
  const std::string partial = path + ".partial";
  {
    std::ofstream file(partial, std::ios::trunc);
    file << json();
    if (!file.flush()) throw errno_error("write", partial);
  }
  if (std::rename(partial.c_str(), path.c_str()) != 0) throw errno_error("rename", partial);
}

}  // namespace pollux::primary
