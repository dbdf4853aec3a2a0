// A backup's machine in lockstep: executes the epochs that the primary recorded, and compares how they ended.
//
// It is made of the image when the full sync is whole. An epoch that ends otherwise than the primary's leaves it
// diverged: it executes nothing more until a record of pages has brought its memory, disks and state to the end of a later
// epoch, from which it goes on. So does one that does not end although its guest had `longest_epoch` to run in it: nothing
// it may come to is the primary's any more. It never takes an input from this host (rule P3).
//
// Used by the Applier's thread, except interrupt(); given up by give_up(), when that is idle.
#pragma once

#include <chrono>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "backup/epoch_record.h"
#include "backup/replica_image.h"
#include "backup/silenced_input.h"
#include "backup/suppressing_gate.h"
#include "protocol/message.h"
#include "vmm/deterministic/deterministic_machine.h"

namespace pollux::backup {

// The machine with what it stands on. Outlives nobody: whoever has it keeps it until the machine is gone.
struct ExecutingMachine {
  ExecutingMachine(vmm::Backends& backends, IgnoredCount ignored) : input(std::move(ignored)), gate(backends) {}

  SilencedInput input;
  SuppressingGate gate;
  std::unique_ptr<vmm::DeterministicMachine> machine;
};

struct DivergedEpoch {
  protocol::EpochId epoch;
  std::vector<protocol::PageNumber> pages;  // that differ; none when all_pages
  bool all_pages = false;
};

class LockstepReplica {
 public:
  LockstepReplica(ReplicaImage& image, vmm::Backends& backends, vmm::EpochLength epoch_length,
                  std::chrono::milliseconds longest_epoch = vmm::DeterministicOptions{}.longest_epoch);

  // Nothing: the machine stands at the end of this epoch, as the primary's did. Throws Error when this host cannot go on.
  [[nodiscard]] std::optional<DivergedEpoch> apply(EpochRecord record);
  // Epochs are executed; else they are to be forgotten.
  [[nodiscard]] bool executes() const { return running_ != nullptr && !diverged_; }
  // From any thread: apply() ends soon, by an Error.
  void interrupt();
  // While it executes.
  [[nodiscard]] vmm::DeterministicMachine& machine() { return *running_->machine; }
  // From any thread: interrupts of this host's own devices that were ignored since the last call.
  [[nodiscard]] std::uint64_t take_ignored() { return ignored_->exchange(0); }
  // For promotion.
  [[nodiscard]] std::unique_ptr<ExecutingMachine> give_up() { return std::move(running_); }

 private:
  void restore();
  [[nodiscard]] std::optional<DivergedEpoch> execute(const EpochRecord& record);
  [[nodiscard]] vmm::EpochEnd replay(const vmm::EpochInputs& inputs);
  [[nodiscard]] DivergedEpoch diverged(protocol::EpochId epoch, const std::string& how,
                                       const std::vector<vmm::Gfn>& pages);

  ReplicaImage& image_;
  vmm::Backends& backends_;
  const vmm::EpochLength epoch_length_;
  const std::chrono::milliseconds longest_epoch_;
  const IgnoredCount ignored_ = std::make_shared<std::atomic<std::uint64_t>>(0);
  bool diverged_ = false;
  std::unique_ptr<ExecutingMachine> running_;
  std::mutex mutex_;
  vmm::DeterministicMachine* interruptible_ = nullptr;  // guarded by mutex_
  bool interrupted_ = false;                            // guarded by mutex_
};

}  // namespace pollux::backup
