#include "protocol/arbiter/bounded_arbiter.h"

#include <fmt/format.h>

#include <atomic>
#include <condition_variable>
#include <exception>
#include <optional>
#include <thread>
#include <utility>

namespace pollux::protocol {

// Outlives the arbiter while a thread does.
struct BoundedArbiter::Abandoned {
  std::atomic<unsigned> count{0};
};

namespace {

// What the caller and the thread share.
struct Call {
  std::mutex mutex;
  std::condition_variable done;
  std::optional<Decision> decision;
  bool abandoned = false;
};

Decision decide_or_explain(Decider& decider, const TermClaim& claim, TimePoint deadline) {
  try {
    return decider.decide(claim, deadline);
  } catch (const std::exception& error) {
    return Decision::unreachable(error.what());
  }
}

}  // namespace

BoundedArbiter::BoundedArbiter(std::string name, std::shared_ptr<Decider> decider,
                               std::chrono::milliseconds timeout)
    : name_(std::move(name)),
      decider_(std::move(decider)),
      timeout_(timeout),
      abandoned_(std::make_shared<Abandoned>()) {
  POLLUX_ASSERT(decider_ != nullptr);
}

Verdict BoundedArbiter::claim(const TermClaim& claim) {
  POLLUX_ASSERT(claim.members.size() <= kMaxMembers);
  Decision decision = decide(claim);
  POLLUX_ASSERT((decision.verdict == Verdict::kWon) == decision.reason.empty());
  const std::lock_guard lock(mutex_);
  last_reason_ = std::move(decision.reason);
  return decision.verdict;
}

std::string BoundedArbiter::last_reason() const {
  const std::lock_guard lock(mutex_);
  return last_reason_;
}

unsigned BoundedArbiter::abandoned() const { return abandoned_->count; }

Decision BoundedArbiter::decide(const TermClaim& claim) {
  if (!can_be_won(claim.term)) return Decision::lost(fmt::format("term {} cannot be won", claim.term.value));
  if (abandoned() >= kMaxAbandoned) {
    return Decision::unreachable(fmt::format("{}: {} earlier claims still hang", name_, kMaxAbandoned));
  }
  const TimePoint deadline = std::chrono::steady_clock::now() + timeout_;
  const auto call = std::make_shared<Call>();
  try {
    std::thread([call, claim, deadline, decider = decider_, abandoned = abandoned_] {
      Decision decision = decide_or_explain(*decider, claim, deadline);
      const std::lock_guard lock(call->mutex);
      call->decision = std::move(decision);
      if (call->abandoned) --abandoned->count;
      call->done.notify_one();
    }).detach();
  } catch (const std::system_error& error) {
    return Decision::unreachable(fmt::format("{}: cannot start a thread: {}", name_, error.what()));
  }
  std::unique_lock lock(call->mutex);
  if (call->done.wait_until(lock, deadline, [&] { return call->decision.has_value(); })) {
    return std::move(*call->decision);
  }
  call->abandoned = true;
  ++abandoned_->count;
  return Decision::unreachable(fmt::format("{}: no answer within {} ms", name_, timeout_.count()));
}

}  // namespace pollux::protocol
