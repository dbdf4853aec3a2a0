#include "vmm/deterministic/epoch_watch.h"

#include <algorithm>
#include <ctime>
#include <utility>

#include "base/error.h"
#include "base/thread_name.h"

namespace pollux::vmm {
namespace {

std::chrono::nanoseconds own_processor_time() {
  timespec used{};
  POLLUX_ASSERT(::clock_gettime(CLOCK_THREAD_CPUTIME_ID, &used) == 0);
  return std::chrono::seconds(used.tv_sec) + std::chrono::nanoseconds(used.tv_nsec);
}

}  // namespace

EpochWatch::EpochWatch(std::chrono::milliseconds limit, std::function<void()> kick)
    : limit_(limit), turn_(limit_ / kTurns), kick_(std::move(kick)) {}

void EpochWatch::begin_epoch() {
  had_ = {};
  begun_before_ = false;
  epochs_.fetch_add(1, std::memory_order_relaxed);
  if (!thread_.joinable()) thread_ = std::jthread([this](const std::stop_token& stop) { take_turns(stop); });
}

// An epoch's first part counts from its first turn on, so that ending within that turn costs nothing. Later ones count
// from their beginning: they may all be shorter than a turn.
void EpochWatch::enter() {
  counted_to_.reset();
  if (std::exchange(begun_before_, true)) counted_to_ = own_processor_time();
  seen_ = turns_.load(std::memory_order_relaxed);
}

void EpochWatch::leave() { count(); }

bool EpochWatch::is_over() {
  const std::uint64_t turns = turns_.load(std::memory_order_relaxed);
  if (std::exchange(seen_, turns) == turns) return false;
  count();
  return had_ >= limit_;
}

void EpochWatch::count() {
  const std::chrono::nanoseconds now = own_processor_time();
  if (counted_to_) had_ += std::min(now - *counted_to_, turn_);
  counted_to_ = now;
}

void EpochWatch::take_turns(const std::stop_token& stop) {
  name_this_thread("epoch watch");
  std::uint64_t last = 0;
  std::unique_lock lock(mutex_);
  while (!stop.stop_requested()) {
    stopped_.wait_for(lock, stop, turn_, [] { return false; });
    const std::uint64_t epoch = epochs_.load(std::memory_order_relaxed);
    if (std::exchange(last, epoch) != epoch) continue;
    turns_.fetch_add(1, std::memory_order_relaxed);
    kick_();
  }
}

}  // namespace pollux::vmm
