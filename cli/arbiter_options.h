// Who decides between replicas that lost each other, as `primary` and `backup` take it.
#pragma once

#include <cstdint>
#include <string>

#include "protocol/arbiter/arbiter.h"
#include "protocol/claim.h"

namespace CLI {
class App;
}

namespace pollux::cli {

class ArbiterOptions {
 public:
  void add_to(CLI::App& app);

  // Claims for this process, which is one replica, under a name of its own. Opens the arbiter; throws UsageError naming
  // the option.
  [[nodiscard]] protocol::Claim open() const;

 private:
  std::string spec_;
  std::uint64_t timeout_ms_ = 5000;
  protocol::ArbiterOptions options_;
};

}  // namespace pollux::cli
