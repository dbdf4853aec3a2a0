// Which host was at what, and when, from what replicas say of themselves and the campaign knows. Thread safe.
#pragma once

#include <mutex>
#include <vector>

#include "chaos/replica.h"
#include "chaos/run_record.h"

namespace pollux::chaos {

class RoleTracker {
 public:
  static constexpr std::size_t kMaxSpans = 200'000;
  static constexpr std::size_t kMaxSamples = 200'000;

  explicit RoleTracker(std::size_t hosts) : current_(hosts) {
    for (std::size_t host = 0; host < hosts; ++host) current_[host].host = host;
  }
  void note(std::size_t host, RoleSpan::Role role, std::uint64_t term, Moment at);
  void note(std::size_t host, const ReplicaStatus& status, Moment at);
  // Everything until `at`.
  [[nodiscard]] std::vector<RoleSpan> spans(Moment at) const;
  [[nodiscard]] std::vector<EpochSample> samples() const;

 private:
  mutable std::mutex mutex_;
  std::vector<RoleSpan> current_;  // by host; `to` is open
  std::vector<RoleSpan> past_;
  std::vector<EpochSample> samples_;
};

}  // namespace pollux::chaos
