// Several clients at once on few keys: what a campaign's history is made of. Registers are put and got, counters
// incremented and got; every put has a value of its own, so that a wrong one tells where it is from.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "chaos/kv_client.h"

namespace pollux::chaos {

struct WorkloadOptions {
  ServerAddress server;
  std::uint64_t seed = 1;
  std::uint64_t clients = 4;
  std::uint64_t registers = 2;
  std::uint64_t counters = 2;
  std::chrono::milliseconds interval{10};  // a client begins no two requests within it
  std::chrono::milliseconds retransmit{50};
};

class Workload {
 public:
  static constexpr std::uint64_t kMaxClients = 16;  // within what the linearizability check decides quickly

  // Begins. Throws Error.
  Workload(const WorkloadOptions& options, const Stopwatch& watch, HistoryRecorder& recorder);
  ~Workload();
  Workload(const Workload&) = delete;
  Workload& operator=(const Workload&) = delete;

  // No request begins any more; one under way is asked on until its answer, at most so long. Then each key is read once
  // more: what is acknowledged must be there. False: not all of it was answered in time.
  bool finish(std::chrono::milliseconds patience);
  // Ends at once; requests under way stay unanswered.
  void stop();
  // Answers that no correct server gives.
  [[nodiscard]] std::vector<std::string> errors() const;
  [[nodiscard]] std::vector<std::string> keys() const;

 private:
  void run_client(std::uint64_t number);
  void note_error(const std::string& text);
  // False: it is time to end.
  [[nodiscard]] bool wait_for_turn(Stopwatch::Clock::time_point turn);
  void join();

  const WorkloadOptions options_;
  const Stopwatch& watch_;
  HistoryRecorder& recorder_;
  std::atomic<bool> stopped_ = false;  // give up what is under way

  mutable std::mutex mutex_;  // guards all below
  std::condition_variable changed_;
  bool finishing_ = false;
  std::uint64_t running_ = 0;  // clients
  bool read_ = false;          // the last reads are over
  std::vector<std::string> errors_;
  std::vector<std::thread> threads_;  // of the constructing thread
};

}  // namespace pollux::chaos
