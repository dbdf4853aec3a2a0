#include "cli/protection_options.h"

#include <CLI/CLI.hpp>

#include "base/error.h"
#include "cli/host_options.h"
#include "cli/memory_sizes.h"

namespace pollux::cli {

void ProtectionOptions::add_to(CLI::App& app) {
  app.add_option("--epoch-ms", epoch_ms_, "copy: epoch length: outputs wait for its end and its commit")->capture_default_str();
  app.add_option("--commit", commit_, "lockstep: on-output: the guest runs on while its outputs wait for their commit; "
                                      "every-epoch: it waits itself, after each epoch")
      ->capture_default_str();
  app.add_option("--max-lag", max_lag_, "lockstep: the guest waits when a backup is so many epochs behind in executing")
      ->capture_default_str();
  app.add_option("--held", held_, "memory for outputs that wait for their commit")->capture_default_str();
  app.add_option("--stats", statistics_, "write statistics to this JSON file every second")->type_name("FILE");
}

void ProtectionOptions::apply_to(primary::PrimaryOptions& options) const {
  if (epoch_ms_ < 1 || epoch_ms_ > 10'000) throw UsageError("--epoch-ms: expected 1 to 10000");
  options.epoch_length = std::chrono::milliseconds(epoch_ms_);
  if (commit_ != "on-output" && commit_ != "every-epoch") {
    throw UsageError("--commit " + commit_ + ": expected on-output or every-epoch");
  }
  options.lockstep.commit_rule =
      commit_ == "on-output" ? primary::CommitRule::kOnOutput : primary::CommitRule::kEveryEpoch;
  if (max_lag_ < 1 || max_lag_ > primary::kMaxLagLimit) {
    throw UsageError("--max-lag: expected 1 to " + std::to_string(primary::kMaxLagLimit));
  }
  options.lockstep.max_lag = max_lag_;
  options.held_bytes = parse_memory_size("--held", held_, kSmallestBuffer);
  check_writable("--stats", statistics_);
  options.statistics_path = statistics_;
}

protocol::OnDivergence on_divergence_of(const std::string& word) {
  if (word == "heal") return protocol::OnDivergence::kHeal;
  if (word == "halt") return protocol::OnDivergence::kHalt;
  throw UsageError("--on-divergence " + word + ": expected heal or halt");
}

}  // namespace pollux::cli
