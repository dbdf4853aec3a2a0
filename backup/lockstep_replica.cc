#include "backup/lockstep_replica.h"

#include <spdlog/spdlog.h>

#include <algorithm>
#include <iterator>
#include <utility>

#include "base/error.h"

namespace pollux::backup {

using protocol::EpochId;
using vmm::EpochEnd;
using vmm::Gfn;

LockstepReplica::LockstepReplica(ReplicaImage& image, vmm::Backends& backends, vmm::EpochLength epoch_length,
                                 std::chrono::milliseconds longest_epoch)
    : image_(image), backends_(backends), epoch_length_(epoch_length), longest_epoch_(longest_epoch) {}

std::optional<DivergedEpoch> LockstepReplica::apply(EpochRecord record) {
  if (record.inputs.empty()) {
    // The full sync, whose pages the image has, or a record that heals.
    if (running_ != nullptr) {
      const std::lock_guard lock(mutex_);
      interruptible_ = nullptr;
      image_.take_back(running_->machine->give_up_memory());
      running_.reset();
    }
    image_.apply(std::move(record));
    restore();
    return std::nullopt;
  }
  POLLUX_ASSERT(executes());
  return execute(record);
}

void LockstepReplica::restore() {
  running_ = std::make_unique<ExecutingMachine>(backends_, ignored_);
  vmm::DeterministicOptions options;
  options.epoch_length = epoch_length_;
  options.longest_epoch = longest_epoch_;
  running_->machine = vmm::DeterministicMachine::restore(image_.config(), image_.take_memory(), image_.take_state(),
                                                         backends_, running_->input, running_->gate, options);
  diverged_ = false;
  const std::lock_guard lock(mutex_);
  interruptible_ = running_->machine.get();
}

std::optional<DivergedEpoch> LockstepReplica::execute(const EpochRecord& record) {
  const vmm::EpochInputs inputs = vmm::decode_epoch_inputs(record.inputs);
  if (inputs.clock != record.clock) throw Error("the clock value of the epoch's end is not the one in its inputs");  // P4
  const vmm::EpochDigest expected = vmm::decode_epoch_digest(record.digest);
  const EpochEnd end = replay(inputs);
  running_->gate.check_reads();  // before the end is compared: what the guest was told here is no divergence of its own
  if (end.why == EpochEnd::Why::kDiverged) return diverged(record.epoch, end.divergence, {});
  if (const auto how = vmm::difference(expected, end.digest)) {
    return diverged(record.epoch, *how, vmm::differing_pages(expected, end.digest));
  }
  running_->gate.apply();
  return std::nullopt;
}

EpochEnd LockstepReplica::replay(const vmm::EpochInputs& inputs) {
  for (;;) {
    EpochEnd end = running_->machine->replay_epoch(inputs);
    if (end.why != EpochEnd::Why::kStopped) return end;
    const std::lock_guard lock(mutex_);
    if (interrupted_) throw Error("stopped");
  }
}

// Beside the pages known to differ, those that nobody told to have been written are reported: the epoch's own, if it has no
// digest, and memory that was altered behind the guest's back, which is what may have led it astray.
DivergedEpoch LockstepReplica::diverged(EpochId epoch, const std::string& how, const std::vector<Gfn>& pages) {
  diverged_ = true;
  running_->gate.discard();
  std::vector<Gfn> all;
  std::ranges::set_union(pages, running_->machine->altered_pages(), std::back_inserter(all));
  DivergedEpoch result{epoch, {}, all.size() > protocol::kMaxDivergedPages};
  if (!result.all_pages) {
    for (const Gfn page : all) result.pages.push_back({page.value});
  }
  spdlog::warn("diverged in epoch {}: {}; {} page(s) to heal", epoch.value, how, all.size());
  return result;
}

void LockstepReplica::interrupt() {
  const std::lock_guard lock(mutex_);
  interrupted_ = true;
  if (interruptible_ != nullptr) interruptible_->interrupt();
}

}  // namespace pollux::backup
