// Many seeds on some threads; a seed's outcome depends on nothing but the seed.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>

#include "mutants.h"

namespace pollux::sim {

struct Failure {
  std::uint64_t seed = 0;
  std::string what;
};

struct CampaignResult {
  std::uint64_t seeds_run = 0;
  std::optional<Failure> failure;  // the lowest seed that was found
};

// The violated invariant; none: the seed passed.
[[nodiscard]] std::optional<std::string> run_seed(std::uint64_t seed, Mutant mutant,
                                                  std::function<void(const std::string&)> trace = {});

// Seeds first..last, until one fails. `progress` is called now and then from one thread with how many are done.
[[nodiscard]] CampaignResult run_seeds(std::uint64_t first, std::uint64_t last, Mutant mutant, unsigned jobs,
                                       const std::function<void(std::uint64_t)>& progress);

// A failed assertion of a state machine ends the process: this makes it name its seed before.
void name_seed_on_abort();

}  // namespace pollux::sim
