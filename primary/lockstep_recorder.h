// The guest's side of lockstep on the primary: runs the machine epoch by epoch on the engine's thread, and keeps of the
// last epochs what it takes to heal a backup that diverged in one of them.
//
// Who waits for a commit or a backup, and when, is decided by the EpochEngine; what goes over which link, too.
#pragma once

#include <chrono>
#include <condition_variable>
#include <deque>
#include <memory>
#include <optional>
#include <thread>
#include <vector>

#include "primary/engine_mailbox.h"
#include "primary/held_epoch.h"
#include "primary/parcels.h"
#include "protocol/types.h"
#include "vmm/deterministic/deterministic_machine.h"

namespace pollux::primary {

// Wakes a guest that waits or computes when the mailbox has something urgent, and several times a second in any case: so
// the engine takes its turn.
class Interrupter {
 public:
  Interrupter(vmm::DeterministicMachine& machine, EngineMailbox& mailbox);

 private:
  void run(const std::stop_token& stop);

  vmm::DeterministicMachine& machine_;
  EngineMailbox& mailbox_;
  std::jthread thread_;
};

class LockstepRecorder {
 public:
  enum class Ran {
    kEpochEnd,
    kStopped,  // in the midst of an epoch: the engine has to look at its mailbox
    kStuck,    // the guest does not come to its epoch's end
  };

  // The machine is paused, and only this runs it. `closed` is the epoch at whose end it stands.
  LockstepRecorder(vmm::DeterministicMachine& machine, EngineMailbox& mailbox, protocol::EpochId closed);

  Ran run(vmm::EpochLength length);
  // An epoch was begun and is not over.
  [[nodiscard]] bool under_way() const { return begun_.has_value(); }

  // After kEpochEnd, once: the epoch's inputs and digest, encoded; its changed pages and outputs are remembered.
  struct Record {
    std::shared_ptr<const Bytes> inputs;
    std::shared_ptr<const Bytes> digest;
    std::uint64_t changed_pages = 0;
    std::chrono::nanoseconds clock{};  // at the end of the epoch, and in the inputs
  };
  [[nodiscard]] Record take(std::shared_ptr<const HeldEpoch> held);
  // Of the last epoch.
  [[nodiscard]] bool guest_waits() const { return end_.inputs.boundary == vmm::EpochBoundary::kWaited; }
  [[nodiscard]] std::chrono::nanoseconds last_epoch_time() const { return took_; }
  // Every backup has executed these epochs.
  void forget(protocol::EpochId up_to);
  // Of what is remembered, about.
  [[nodiscard]] std::uint64_t remembered_bytes() const { return bytes_; }

  // What a backup that diverged needs, at the end of the last epoch taken: ascending, pages of RAM only.
  [[nodiscard]] std::vector<vmm::Gfn> pages_to_heal(const HealRequest& request) const;
  // The outputs of the epochs from that one on.
  [[nodiscard]] std::vector<std::shared_ptr<const HeldEpoch>> held_since(protocol::EpochId epoch) const;

 private:
  struct Remembered {
    protocol::EpochId epoch;
    std::vector<vmm::Gfn> pages;
    std::shared_ptr<const HeldEpoch> held;
    std::uint64_t bytes = 0;
  };

  vmm::DeterministicMachine& machine_;
  vmm::EpochEnd end_;
  std::optional<std::chrono::steady_clock::time_point> begun_;
  std::chrono::nanoseconds took_{};
  protocol::EpochId last_;
  std::deque<Remembered> remembered_;  // bounded by the engine: see LockstepOptions::max_lag
  std::uint64_t bytes_ = 0;
  Interrupter interrupter_;
};

}  // namespace pollux::primary
