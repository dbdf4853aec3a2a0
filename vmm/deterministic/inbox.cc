#include "vmm/deterministic/inbox.h"

#include "vmm/deterministic/epoch_inputs.h"
#include "vmm/net/tap.h"

namespace pollux::vmm {
namespace {

// The longest wait at a time: whatever clock the limit was computed with, it is looked at again.
constexpr std::chrono::nanoseconds kLongestWait = std::chrono::seconds(60);

std::size_t bytes_in(const Arrival& arrival) {
  if (const auto* frame = std::get_if<FrameArrival>(&arrival)) return frame->frame.size();
  return std::get<ConsoleArrival>(arrival).bytes.size();
}

}  // namespace

static_assert(Inbox::kMaxFrames * kMaxFrame + Inbox::kMaxConsoleBytes <= kMaxArrivalBytes);

void Inbox::deliver(Arrival arrival) {
  {
    const std::lock_guard lock(mutex_);
    const std::size_t bytes = bytes_in(arrival);
    if (bytes == 0) return;
    if (std::holds_alternative<FrameArrival>(arrival)) {
      if (frames_ == kMaxFrames || bytes > kMaxFrame) return;
      ++frames_;
    } else {
      if (bytes > kMaxConsoleBytes - console_bytes_) return;
      console_bytes_ += bytes;
    }
    arrivals_.push_back(std::move(arrival));
  }
  changed_.notify_one();
}

void Inbox::wake() {
  {
    const std::lock_guard lock(mutex_);
    woken_ = true;
  }
  changed_.notify_one();
}

std::vector<Arrival> Inbox::take() {
  std::vector<Arrival> taken;
  const std::lock_guard lock(mutex_);
  while (!arrivals_.empty() && taken.size() < kMaxArrivals) {
    if (std::holds_alternative<FrameArrival>(arrivals_.front())) {
      --frames_;
    } else {
      console_bytes_ -= bytes_in(arrivals_.front());
    }
    taken.push_back(std::move(arrivals_.front()));
    arrivals_.pop_front();
  }
  return taken;
}

bool Inbox::empty() const {
  const std::lock_guard lock(mutex_);
  return arrivals_.empty();
}

void Inbox::wait(std::optional<std::chrono::nanoseconds> limit) {
  std::unique_lock lock(mutex_);
  changed_.wait_for(lock, std::min(limit.value_or(kLongestWait), kLongestWait),
                    [this] { return woken_ || !arrivals_.empty(); });
  woken_ = false;
}

}  // namespace pollux::vmm
