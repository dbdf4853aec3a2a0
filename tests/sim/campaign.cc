#include "campaign.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <csignal>
#include <mutex>
#include <thread>
#include <vector>

#include "world.h"

namespace pollux::sim {

namespace {

constexpr std::uint64_t kSeedsAtATime = 64;

thread_local volatile std::uint64_t seed_running = 0;

void on_abort(int) {
  // Only what a signal handler may do.
  char text[96];
  const auto end = fmt::format_to_n(text, sizeof(text),
                                    "seed {} failed: an assertion; replay: pollux-sim --replay {} --trace\n",
                                    std::uint64_t{seed_running}, std::uint64_t{seed_running});
  (void)!::write(STDERR_FILENO, text, std::min(end.size, sizeof(text)));
  std::signal(SIGABRT, SIG_DFL);
}

void add(Coverage& coverage, const Outcome& outcome) {
  coverage.protected_once += outcome.protected_once;
  coverage.promoted += outcome.promoted;
  coverage.primary_fenced += outcome.primary_fenced;
  coverage.backup_fenced += outcome.backup_fenced;
  coverage.handed_over += outcome.handed_over;
  coverage.went_alone += outcome.went_alone;
  coverage.machine_lost += outcome.machine_lost;
  coverage.reprotected += outcome.reprotected;
  coverage.succeeded_twice += outcome.succeeded_twice;
  coverage.disk_failed += outcome.disk_failed;
  coverage.member_claimed += outcome.member_claimed;
  coverage.traffic += outcome.traffic;
}

void add(Coverage& coverage, const Coverage& more) {
  coverage.seeds += more.seeds;
  coverage.protected_once += more.protected_once;
  coverage.promoted += more.promoted;
  coverage.primary_fenced += more.primary_fenced;
  coverage.backup_fenced += more.backup_fenced;
  coverage.handed_over += more.handed_over;
  coverage.went_alone += more.went_alone;
  coverage.machine_lost += more.machine_lost;
  coverage.reprotected += more.reprotected;
  coverage.succeeded_twice += more.succeeded_twice;
  coverage.disk_failed += more.disk_failed;
  coverage.member_claimed += more.member_claimed;
  coverage.traffic += more.traffic;
}

}  // namespace

void name_seed_on_abort() { std::signal(SIGABRT, on_abort); }

std::optional<std::string> run_seed(std::uint64_t seed, Mutant mutant, Coverage& coverage,
                                    std::function<void(const std::string&)> trace) {
  seed_running = seed;
  ++coverage.seeds;
  try {
    World world(seed, mutant, std::move(trace));
    world.run();
    add(coverage, world.outcome());
    return std::nullopt;
  } catch (const Violation& violation) {
    return violation.what();
  }
}

CampaignResult run_seeds(std::uint64_t first, std::uint64_t last, Mutant mutant, unsigned jobs,
                         const std::function<void(std::uint64_t)>& progress) {
  std::atomic<std::uint64_t> next{first};
  std::atomic<std::uint64_t> done{0};
  std::mutex mutex;
  CampaignResult result;
  std::atomic<bool> failed{false};
  const auto work = [&](bool reports) {
    Coverage coverage;
    while (!failed) {
      const std::uint64_t from = next.fetch_add(kSeedsAtATime);
      if (from > last) break;
      for (std::uint64_t seed = from; seed <= std::min(last, from + kSeedsAtATime - 1) && !failed; ++seed) {
        if (auto what = run_seed(seed, mutant, coverage)) {
          const std::lock_guard lock(mutex);
          if (!result.failure || seed < result.failure->seed) result.failure = {seed, *what};
          failed = true;
        }
        ++done;
      }
      if (reports) progress(done);
    }
    const std::lock_guard lock(mutex);
    add(result.coverage, coverage);
  };
  std::vector<std::thread> threads;
  for (unsigned j = 1; j < jobs; ++j) threads.emplace_back(work, false);
  work(true);
  for (std::thread& thread : threads) thread.join();
  return result;
}

}  // namespace pollux::sim
