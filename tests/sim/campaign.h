// Many seeds on some threads; a seed's outcome depends on nothing but the seed.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>

#include "mutants.h"
#include "traffic.h"

namespace pollux::sim {

struct Failure {
  std::uint64_t seed = 0;
  std::string what;
};

// How many worlds came to what.
struct Coverage {
  std::uint64_t seeds = 0;
  std::uint64_t protected_once = 0;
  std::uint64_t promoted = 0;
  std::uint64_t primary_fenced = 0;
  std::uint64_t backup_fenced = 0;
  std::uint64_t handed_over = 0;
  std::uint64_t went_alone = 0;
  std::uint64_t machine_lost = 0;
  std::uint64_t reprotected = 0;
  std::uint64_t succeeded_twice = 0;
  std::uint64_t disk_failed = 0;
  std::uint64_t member_claimed = 0;
  Traffic traffic;
};

struct CampaignResult {
  Coverage coverage;
  std::optional<Failure> failure;  // the lowest seed that was found
};

// The violated invariant; none: the seed passed.
[[nodiscard]] std::optional<std::string> run_seed(std::uint64_t seed, Mutant mutant, Coverage& coverage,
                                                  std::function<void(const std::string&)> trace = {});

// Seeds first..last, until one fails. `progress` is called now and then from one thread with how many are
// done.
[[nodiscard]] CampaignResult run_seeds(std::uint64_t first, std::uint64_t last, Mutant mutant, unsigned jobs,
                                       const std::function<void(std::uint64_t)>& progress);

// A failed assertion of a state machine ends the process: this makes it name its seed before.
void name_seed_on_abort();

}  // namespace pollux::sim
