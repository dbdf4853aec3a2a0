#include "primary/lockstep_recorder.h"

#include <algorithm>
#include <utility>

#include "base/error.h"
#include "base/thread_name.h"

namespace pollux::primary {

using namespace std::chrono_literals;
using protocol::EpochId;
using vmm::Gfn;

namespace {
using Clock = std::chrono::steady_clock;
constexpr auto kTurnInterval = 200ms;
}  // namespace

Interrupter::Interrupter(vmm::DeterministicMachine& machine, EngineMailbox& mailbox)
    : machine_(machine), mailbox_(mailbox), thread_([this](const std::stop_token& stop) { run(stop); }) {}

void Interrupter::run(const std::stop_token& stop) {
  name_this_thread("interrupter");
  std::uint64_t seen = mailbox_.urgent();
  while (!stop.stop_requested()) {
    seen = mailbox_.wait_for_urgent(seen, kTurnInterval, stop);
    machine_.interrupt();
  }
}

LockstepRecorder::LockstepRecorder(vmm::DeterministicMachine& machine, EngineMailbox& mailbox, EpochId closed)
    : machine_(machine), last_(closed), interrupter_(machine, mailbox) {}

LockstepRecorder::Ran LockstepRecorder::run(vmm::EpochLength length) {
  if (!begun_) begun_ = Clock::now();
  end_ = machine_.record_epoch(length);
  if (end_.why == vmm::EpochEnd::Why::kStopped) return Ran::kStopped;
  if (end_.why == vmm::EpochEnd::Why::kStuck) return Ran::kStuck;
  POLLUX_ASSERT(end_.why == vmm::EpochEnd::Why::kEpochEnd);
  took_ = Clock::now() - *begun_;
  begun_.reset();
  return Ran::kEpochEnd;
}

LockstepRecorder::Record LockstepRecorder::take(std::shared_ptr<const HeldEpoch> held) {
  last_ = last_.next();
  POLLUX_ASSERT(held->epoch == last_);
  Record record{std::make_shared<const Bytes>(encode(end_.inputs)), std::make_shared<const Bytes>(encode(end_.digest)),
                end_.digest.pages.size(), end_.inputs.clock};
  Remembered remembered{last_, pages_of(end_.digest), std::move(held), 0};
  remembered.bytes = remembered.pages.size() * sizeof(Gfn) + remembered.held->disk_bytes +
                     remembered.held->emitted_bytes + record.inputs->size() + record.digest->size();
  bytes_ += remembered.bytes;
  remembered_.push_back(std::move(remembered));
  return record;
}

void LockstepRecorder::forget(EpochId up_to) {
  while (!remembered_.empty() && remembered_.front().epoch <= up_to) {
    bytes_ -= remembered_.front().bytes;
    remembered_.pop_front();
  }
}

std::vector<Gfn> LockstepRecorder::pages_to_heal(const HealRequest& request) const {
  const vmm::GuestMemory& memory = machine_.memory();
  if (request.all_pages) return memory.all_gfns();
  std::vector<Gfn> pages;
  for (const protocol::PageNumber page : request.pages) {
    if (memory.contains({page.value})) pages.push_back({page.value});
  }
  for (const Remembered& epoch : remembered_) {
    if (epoch.epoch >= request.epoch) pages.insert(pages.end(), epoch.pages.begin(), epoch.pages.end());
  }
  std::ranges::sort(pages);
  const auto repeated = std::ranges::unique(pages);
  pages.erase(repeated.begin(), repeated.end());
  return pages;
}

std::vector<std::shared_ptr<const HeldEpoch>> LockstepRecorder::held_since(EpochId epoch) const {
  // None is missing: every epoch that some backup has not executed is remembered.
  POLLUX_ASSERT(!remembered_.empty() && remembered_.front().epoch <= epoch);
  std::vector<std::shared_ptr<const HeldEpoch>> held;
  for (const Remembered& remembered : remembered_) {
    if (remembered.epoch >= epoch) held.push_back(remembered.held);
  }
  return held;
}

}  // namespace pollux::primary
