// How a machine is protected, as `primary` takes it, and `backup` for the time after its promotion.
#pragma once

#include <cstdint>
#include <string>

#include "primary/primary.h"
#include "protocol/backup_replica.h"

namespace CLI {
class App;
}

namespace pollux::cli {

class ProtectionOptions {
 public:
  void add_to(CLI::App& app);
  // Throws UsageError naming the option.
  void apply_to(primary::PrimaryOptions& options) const;

 private:
  std::uint64_t epoch_ms_ = 20;
  std::string commit_ = "on-output";
  std::uint64_t max_lag_ = primary::LockstepOptions{}.max_lag;
  std::string held_ = "64M";
  std::string statistics_;
};

// --on-divergence. Throws UsageError.
[[nodiscard]] protocol::OnDivergence on_divergence_of(const std::string& word);

}  // namespace pollux::cli
