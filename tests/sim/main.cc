// pollux-sim: the replication protocol in simulated worlds, one per seed.
#include <fmt/format.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <chrono>
#include <cstdio>
#include <ctime>
#include <fstream>
#include <sstream>
#include <string>
#include <thread>

#include "campaign.h"

namespace {

using namespace pollux::sim;
using Clock = std::chrono::steady_clock;

constexpr int kPassed = 0;
constexpr int kFailed = 1;
constexpr int kUsage = 2;
constexpr std::size_t kTraceLines = 80;

struct Options {
  std::string seeds = "1..10000";
  std::uint64_t first = 0;
  std::uint64_t last = 0;
  std::optional<std::uint64_t> replay;
  bool trace = false;
  std::string mutant = "none";
  std::string regressions;
  unsigned jobs = 0;
};

Mutant mutant_named(const std::string& name) {
  const auto found = std::find(kMutantNames.begin(), kMutantNames.end(), name);
  return static_cast<Mutant>(found - kMutantNames.begin());
}

std::string replay_command(std::uint64_t seed, Mutant mutant) {
  std::string command = fmt::format("pollux-sim --replay {} --trace", seed);
  if (mutant != Mutant::kNone)
    command += fmt::format(" --mutant {}", kMutantNames[static_cast<std::size_t>(mutant)]);
  return command;
}

// Runs the seed again for its trace: all of it, or the end, where the failure is.
int replay(std::uint64_t seed, Mutant mutant, bool whole) {
  std::vector<std::string> lines;
  Coverage coverage;
  const auto what = run_seed(seed, mutant, coverage, [&](const std::string& line) { lines.push_back(line); });
  const std::size_t from = whole || lines.size() <= kTraceLines ? 0 : lines.size() - kTraceLines;
  if (from > 0) fmt::print("  ... {} lines before\n", from);
  for (std::size_t l = from; l < lines.size(); ++l) fmt::print("{}\n", lines[l]);
  if (!what) {
    fmt::print("seed {}: passed\n", seed);
    return kPassed;
  }
  fmt::print("seed {}: FAILED: {}\nreplay: {}\n", seed, *what, replay_command(seed, mutant));
  return kFailed;
}

class Progress {
 public:
  Progress(std::string what, std::uint64_t total) : what_(std::move(what)), total_(total) {}
  ~Progress() {
    if (on_terminal_) fmt::print(stderr, "\r\033[K");
  }
  void operator()(std::uint64_t done) {
    const auto now = Clock::now();
    if (!on_terminal_ || now - shown_ < std::chrono::milliseconds(200)) return;
    shown_ = now;
    fmt::print(stderr, "\r{}: {} of {} seeds, {:.0f} a second\033[K", what_, done, total_,
               static_cast<double>(done) / seconds());
    std::fflush(stderr);
  }
  [[nodiscard]] double seconds() const {
    return std::chrono::duration<double>(Clock::now() - begun_).count() + 1e-9;
  }

 private:
  std::string what_;
  std::uint64_t total_;
  const bool on_terminal_ = ::isatty(STDERR_FILENO) == 1;
  Clock::time_point begun_ = Clock::now();
  Clock::time_point shown_{};
};

int run_protocol(const Options& options) {
  Progress progress("simulating", options.last - options.first + 1);
  const CampaignResult result = run_seeds(options.first, options.last, Mutant::kNone, options.jobs,
                                          [&](std::uint64_t done) { progress(done); });
  if (result.failure) return replay(result.failure->seed, Mutant::kNone, options.trace);
  const Coverage& worlds = result.coverage;
  // Of all threads: on a machine that others use, too, this says what the worlds cost, and the time on the clock does not.
  const double processor = static_cast<double>(std::clock()) / CLOCKS_PER_SEC;
  fmt::print("{} seeds passed in {:.1f} s, {:.0f} a second; {:.1f} s of processor time\n", worlds.seeds, progress.seconds(),
             static_cast<double>(worlds.seeds) / progress.seconds(), processor);
  fmt::print(
      "of these worlds: {} protected, {} with a promotion, {} with a primary alone, {} with one fenced, {} handed over, {} with a "
      "backup fenced, {} protected again by a joiner, {} with a second promotion, {} with a member that claimed after its winner, {} "
      "with a failed disk, {} without a machine in the end\n",
      worlds.protected_once, worlds.promoted, worlds.went_alone, worlds.primary_fenced, worlds.handed_over, worlds.backup_fenced,
      worlds.reprotected, worlds.succeeded_twice, worlds.member_claimed, worlds.disk_failed, worlds.machine_lost);
  const Traffic& traffic = worlds.traffic;
  fmt::print(
      "on their links: {} segments lost, {} repeated, {} early, {} links given up by TCP; below TCP {} frames lost, {} repeated, {} "
      "swapped, {} refused by a session\n",
      traffic.segments_lost, traffic.segments_repeated, traffic.segments_early, traffic.links_given_up, traffic.frames_lost,
      traffic.frames_repeated, traffic.frames_swapped, traffic.frames_refused);
  return kPassed;
}

// A mutant is caught when some seed fails. True: it was.
bool hunt(Mutant mutant, const Options& options) {
  const std::string name(kMutantNames[static_cast<std::size_t>(mutant)]);
  Progress progress(name, options.last - options.first + 1);
  const CampaignResult result = run_seeds(options.first, options.last, mutant, options.jobs,
                                          [&](std::uint64_t done) { progress(done); });
  if (result.failure) {
    fmt::print("{:26} caught after {:5} seeds (seed {}): {}\n", name, result.coverage.seeds,
               result.failure->seed, result.failure->what);
  } else {
    fmt::print("{:26} SURVIVED {} seeds\n", name, result.coverage.seeds);
  }
  std::fflush(stdout);
  return result.failure.has_value();
}

int run_mutants(const Options& options) {
  bool all_caught = true;
  for (std::size_t m = 1; m < kMutantNames.size(); ++m) {
    if (options.mutant == "all" || options.mutant == kMutantNames[m]) {
      all_caught &= hunt(static_cast<Mutant>(m), options);
    }
  }
  return all_caught ? kPassed : kFailed;
}

// One seed of the file: it must pass, and fail under the mutant that lacks what mended it. Else it covers that no more.
int run_regression(std::uint64_t seed, const std::string& name) {
  Coverage coverage;
  if (run_seed(seed, Mutant::kNone, coverage)) return replay(seed, Mutant::kNone, false);
  if (run_seed(seed, mutant_named(name), coverage)) return kPassed;
  fmt::print("seed {} passes under {}, too: it covers nothing any more; find another with pollux-sim --seeds A..B --mutant {}\n",
             seed, name, name);
  return kFailed;
}

// Lines of "seed  mutant  why it is here"; '#' begins a comment.
int run_regressions(const std::string& path) {
  std::ifstream file(path);
  std::size_t count = 0;
  for (std::string line; std::getline(file, line);) {
    if (line.empty() || line.front() == '#') continue;
    std::uint64_t seed = 0;
    std::string mutant;
    const bool read = static_cast<bool>(std::istringstream(line) >> seed >> mutant);
    if (!read || std::ranges::find(kMutantNames, mutant) == kMutantNames.end()) {
      fmt::print(stderr, "--regressions: {}: \"{}\" is not a seed and a mutant\n", path, line);
      return kUsage;
    }
    if (const int failed = run_regression(seed, mutant)) return failed;
    ++count;
  }
  if (count == 0) {
    fmt::print(stderr, "--regressions: no seeds in {}\n", path);
    return kUsage;
  }
  fmt::print("{} regression seeds passed, and failed without what they are for\n", count);
  return kPassed;
}

bool parse_seeds(Options& options) {
  unsigned long long first = 0;
  unsigned long long last = 0;
  int used = 0;
  const int fields = std::sscanf(options.seeds.c_str(), "%llu..%llu%n", &first, &last, &used);
  if (fields != 2 || static_cast<std::size_t>(used) != options.seeds.size() || last < first) return false;
  options.first = first;
  options.last = last;
  return true;
}

}  // namespace

int main(int argc, char** argv) {
  Options options;
  options.jobs = std::max(1u, std::thread::hardware_concurrency());
  CLI::App app{
      "The replication protocol in simulated worlds, one per seed: exit 0 when every invariant held (or "
      "every "
      "mutant was caught), 1 when not, 2 for a wrong command line."};
  app.add_option("--seeds", options.seeds, "A..B: the worlds to run")->capture_default_str();
  app.add_option("--replay", options.replay, "run this one seed");
  app.add_flag("--trace", options.trace, "with --replay: every step, not only the last ones");
  app.add_option("--mutant", options.mutant,
                 "break the protocol on purpose: a mutant's name, or all of them in turn")
      ->capture_default_str()
      ->check(CLI::IsMember([] {
        std::vector<std::string> names(kMutantNames.begin(), kMutantNames.end());
        names.emplace_back("all");
        return names;
      }()));
  app.add_option("--regressions", options.regressions, "a file of seeds that failed once, each with the mutant that still does");
  app.add_option("--jobs", options.jobs, "threads")->capture_default_str()->check(CLI::Range(1u, 256u));
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? kPassed : kUsage;
  }
  if (!parse_seeds(options)) {
    fmt::print(stderr, "--seeds: {} is not A..B\n", options.seeds);
    return kUsage;
  }
  name_seed_on_abort();
  if (options.replay) {
    if (options.mutant == "all") {
      fmt::print(stderr, "--replay: takes one mutant\n");
      return kUsage;
    }
    return replay(*options.replay, mutant_named(options.mutant), options.trace);
  }
  if (!options.regressions.empty()) return run_regressions(options.regressions);
  return options.mutant == "none" ? run_protocol(options) : run_mutants(options);
}
