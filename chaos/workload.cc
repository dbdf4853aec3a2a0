#include "chaos/workload.h"

#include <fmt/format.h>

#include <algorithm>
#include <random>

#include "base/error.h"

namespace pollux::chaos {
namespace {

constexpr std::size_t kMaxErrors = 16;

std::string register_name(std::uint64_t number) { return fmt::format("register-{}", number); }
std::string counter_name(std::uint64_t number) { return fmt::format("counter-{}", number); }

}  // namespace

Workload::Workload(const WorkloadOptions& options, const Stopwatch& watch, HistoryRecorder& recorder)
    : options_(options), watch_(watch), recorder_(recorder) {
  POLLUX_ASSERT(options.clients > 0 && options.clients <= kMaxClients);
  POLLUX_ASSERT(options.registers + options.counters > 0);
  running_ = options.clients;
  for (std::uint64_t number = 1; number <= options.clients; ++number) {
    threads_.emplace_back([this, number] { run_client(number); });
  }
}

Workload::~Workload() { stop(); }

void Workload::run_client(std::uint64_t number) {
  try {
    KvClient client({options_.server, number, options_.retransmit}, watch_, recorder_);
    std::mt19937_64 random(options_.seed * 1000 + number);
    for (std::uint64_t round = 1;; ++round) {
      const auto next = Stopwatch::Clock::now() + options_.interval;
      const std::uint64_t key = random() % (options_.registers + options_.counters);
      const bool read = random() % 2 == 0;
      const bool counter = key >= options_.registers;
      const std::string name = counter ? counter_name(key - options_.registers) : register_name(key);
      const OperationKind kind = read      ? OperationKind::kGet
                                 : counter ? OperationKind::kIncrement
                                           : OperationKind::kPut;
      const std::string value = kind == OperationKind::kPut ? fmt::format("client {} round {}", number, round) : "";
      if (!client.call(kind, name, value, stopped_)) break;
      if (!wait_for_turn(next)) break;
    }
  } catch (const Error& error) {
    note_error(error.what());
  }
  const std::lock_guard lock(mutex_);
  --running_;
  changed_.notify_all();
}

bool Workload::wait_for_turn(Stopwatch::Clock::time_point turn) {
  std::unique_lock lock(mutex_);
  return !changed_.wait_until(lock, turn, [&] { return finishing_; });
}

void Workload::note_error(const std::string& text) {
  const std::lock_guard lock(mutex_);
  if (errors_.size() < kMaxErrors) errors_.push_back(text);
}

bool Workload::finish(std::chrono::milliseconds patience) {
  const auto deadline = Stopwatch::Clock::now() + patience;
  {
    std::unique_lock lock(mutex_);
    finishing_ = true;
    changed_.notify_all();
    if (!changed_.wait_until(lock, deadline, [&] { return running_ == 0; })) {
      lock.unlock();
      stop();
      return false;
    }
  }
  join();
  // The last reads, in the same time.
  bool answered = true;
  std::thread reader([&] {
    try {
      KvClient client({options_.server, options_.clients + 1, options_.retransmit}, watch_, recorder_);
      for (const std::string& key : keys()) answered = answered && client.call(OperationKind::kGet, key, "", stopped_);
    } catch (const Error& error) {
      note_error(error.what());
    }
    const std::lock_guard lock(mutex_);
    read_ = true;
    changed_.notify_all();
  });
  {
    std::unique_lock lock(mutex_);
    if (!changed_.wait_until(lock, deadline, [&] { return read_; })) stopped_ = true;
  }
  reader.join();
  return answered;
}

void Workload::stop() {
  stopped_ = true;
  {
    const std::lock_guard lock(mutex_);
    finishing_ = true;
    changed_.notify_all();
  }
  join();
}

void Workload::join() {
  for (std::thread& thread : threads_) thread.join();
  threads_.clear();
}

std::vector<std::string> Workload::errors() const {
  const std::lock_guard lock(mutex_);
  return errors_;
}

std::vector<std::string> Workload::keys() const {
  std::vector<std::string> keys;
  for (std::uint64_t i = 0; i < options_.registers; ++i) keys.push_back(register_name(i));
  for (std::uint64_t i = 0; i < options_.counters; ++i) keys.push_back(counter_name(i));
  return keys;
}

}  // namespace pollux::chaos
