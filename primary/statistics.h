// What protection costs: per-epoch figures as histograms, a one-line status, and JSON.
#pragma once

#include <chrono>
#include <cstdint>
#include <mutex>
#include <string>

#include "base/histogram.h"
#include "protocol/types.h"

namespace pollux::primary {

struct EpochFigures {
  protocol::EpochId epoch;
  std::chrono::nanoseconds pause{};  // guest stopped: from the kick to the resume
  std::uint64_t dirty_pages = 0;
  std::uint64_t bytes_sent = 0;   // of its record, per backup: the bodies of its messages, before encryption
};

struct Quantiles {
  std::uint64_t p50 = 0;
  std::uint64_t p99 = 0;
  std::uint64_t max = 0;
};

struct Summary {
  std::string protection;  // see set_protection()
  std::size_t backups = 0;
  std::uint64_t sync_bytes = 0;
  std::uint64_t epochs = 0;
  protocol::EpochId closed{};
  protocol::EpochId committed{};
  Quantiles pause_us;
  Quantiles dirty_pages;
  Quantiles epoch_bytes;
  Quantiles commit_latency_us;
  bool lockstep = false;
  Quantiles lag_epochs;           // lockstep: how many the slowest backup was behind in executing, at each epoch's end
  std::uint64_t divergences = 0;  // that backups reported
  std::uint64_t dirty_pages_total = 0;
  std::uint64_t bytes_total = 0;
  std::uint64_t link_bytes_total = 0;  // see set_link_bytes()
};

// Thread safe.
class Statistics {
 public:
  void epoch_closed(const EpochFigures& figures);
  // From the pause that closed the epoch to its commit.
  void epoch_committed(protocol::EpochId epoch, std::chrono::nanoseconds latency);
  // One of "syncing", "protected", "unprotected", "ended".
  void set_protection(std::string protection);
  void set_backups(std::size_t connected);
  // Beside epoch_closed().
  void lockstep_epoch(std::uint64_t lag);
  void diverged();
  // What all messages to all backups took on the links, sealed: syncs, records, heartbeats.
  void set_link_bytes(std::uint64_t bytes);
  void sync_progress(std::uint64_t sent_bytes, std::uint64_t total_bytes);

  [[nodiscard]] Summary summary() const;
  // For a terminal, under 120 columns, no newline.
  [[nodiscard]] std::string status_line() const;
  // Keys are named after the figures with their unit, e.g. epoch_pause_us_p50.
  [[nodiscard]] std::string json() const;
  // Writes json() to `path` by rename, so that a reader never sees half of it. Throws Error.
  void write(const std::string& path) const;

 private:
  mutable std::mutex mutex_;
  std::string protection_ = "starting";
  std::size_t backups_ = 0;
  std::uint64_t sync_sent_ = 0;
  std::uint64_t sync_total_ = 0;
  protocol::EpochId closed_{};
  protocol::EpochId committed_{};
  Histogram pause_us_;
  Histogram dirty_pages_;
  Histogram bytes_sent_;
  Histogram commit_us_;
  Histogram lag_;
  std::uint64_t divergences_ = 0;
  std::uint64_t link_bytes_ = 0;
};

}  // namespace pollux::primary
