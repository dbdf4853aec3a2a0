// A virtual machine that executes the same epochs from the same inputs, on any host.
//
// One vCPU without interrupt controller, RAM, virtio devices, the epoch device (vmm/guest/abi.h); its guests are built
// with the runtime in vmm/guest. It runs one epoch at a time, on its caller's thread. Whatever the guest cannot compute
// for itself is an input of the epoch: recorded when the machine runs by itself, and taken from the record when it
// repeats what another machine (or itself, earlier) did. Requests to devices are served, completions and arrivals
// delivered, and interrupts queued only between two epochs.
//
// As every machine it also runs freely (resume() to pause()): then the epochs follow each other on a thread of its own,
// their inputs are forgotten, and a pause comes at an epoch's end. A guest that does not come to it crashed.
//
// It knows nothing of replication.
//
// Threads: the caller of record_epoch() or replay_epoch(), or the FreeRunner's, runs the vCPU and has everything of the
// machine meanwhile; one I/O thread receives frames and console input into the Inbox; one for each disk performs requests;
// the EpochWatch has its own. Public functions: one controlling thread's, but interrupt(), request_exit(), wait_for_exit().
#pragma once

#include <chrono>
#include <memory>
#include <optional>
#include <string>

#include "vmm/deterministic/digest.h"
#include "vmm/deterministic/epoch_inputs.h"
#include "vmm/gates/input_gate.h"
#include "vmm/gates/output_gate.h"
#include "vmm/machine/backends.h"
#include "vmm/machine/machine.h"
#include "vmm/machine/machine_config.h"

namespace pollux::vmm {

// Where disk requests are performed while recording. When repeating a record they always are at the epoch's end.
enum class DiskMode {
  kAtEpochEnd,  // the guest stands still meanwhile; answered in the same epoch's end
  kConcurrent,  // on a thread for each disk; answered at the end of a later epoch
};

struct DeterministicOptions {
  DirtyLog dirty_log = DirtyLog::kBitmap;
  DiskMode disks = DiskMode::kConcurrent;
  EpochLength epoch_length;  // while it runs freely
  // A guest that had as much time in an epoch and did not come to its end never will: it was not built with the counter,
  // goes around it, or was led astray. Time in which the guest ran: see EpochWatch.
  std::chrono::milliseconds longest_epoch = std::chrono::seconds(10);
};

// Where an epoch's time went.
struct EpochTimes {
  std::chrono::nanoseconds guest{};    // inside KVM_RUN
  std::chrono::nanoseconds waited{};   // for an input
  std::chrono::nanoseconds inject{};   // completing the access that ended the last epoch, queueing an interrupt
  std::chrono::nanoseconds serve{};    // queues, completions, arrivals
  std::chrono::nanoseconds harvest{};  // dirty pages
  std::chrono::nanoseconds digest{};
  std::uint32_t exits = 0;
};

struct EpochEnd {
  enum class Why {
    kEpochEnd,   // the epoch is over; `inputs` and `digest` are of it
    kStopped,    // interrupt() came first: the epoch goes on with the next call
    kDiverged,   // repeated, it did not do what was recorded; the machine is of no more use
    kStuck,      // recorded, it had DeterministicOptions::longest_epoch and does not end
  };
  Why why = Why::kEpochEnd;
  EpochNumber number;
  EpochInputs inputs;
  EpochDigest digest;
  bool output = false;      // something was given to the output gate in it
  std::string divergence;   // one line
  EpochTimes times;
};

class DeterministicMachine : public Machine {
 public:
  // Both throw UsageError for a bad kernel, initrd or config (more than one vCPU, too), Error when KVM refuses.
  static std::unique_ptr<DeterministicMachine> boot(const MachineConfig& config, const BootSource& source,
                                                    Backends& backends, InputGate& input, OutputGate& output,
                                                    const DeterministicOptions& options = {});
  // `memory` already holds the guest's pages; `state` is what save() gave.
  static std::unique_ptr<DeterministicMachine> restore(const MachineConfig& config,
                                                       std::unique_ptr<GuestMemory> memory, ByteView state,
                                                       Backends& backends, InputGate& input, OutputGate& output,
                                                       const DeterministicOptions& options = {});

  // The rest is only for a machine that is paused.

  // The epoch that runs next, or is under way.
  [[nodiscard]] virtual EpochNumber epoch() const = 0;
  // How the machine ended, if it did.
  [[nodiscard]] virtual const std::optional<MachineExit>& exit() const = 0;

  // Both run to the end of the epoch, on the calling thread. Throw Error when KVM fails. In an epoch of a machine that has
  // ended nothing happens.
  //
  // With inputs of this host. From the first call on, what the backends receive is the machine's.
  virtual EpochEnd record_epoch(EpochLength length) = 0;
  // With these inputs. An epoch that was stopped must be continued with the same ones. One that does not end has diverged.
  virtual EpochEnd replay_epoch(const EpochInputs& inputs) = 0;
  // From any thread: the call under way, or the next one, returns soon. A guest that waits has its epoch ended; one
  // that computes is stopped in the midst of it.
  virtual void interrupt() = 0;

  // Only between two epochs: from here on this machine records, after it has repeated: every disk request it has
  // outstanding will be answered as uncertain in the next epoch.
  virtual void promote() = 0;

  // After replay_epoch() or record_epoch(): every page that is not as it was at the end of the last epoch whose digest was
  // taken, whoever wrote it, ascending. Reads all of memory: for the time after a divergence.
  [[nodiscard]] virtual std::vector<Gfn> altered_pages() = 0;
  // Its memory, for another machine. This one may only be destroyed afterwards, while the memory still exists.
  [[nodiscard]] virtual std::unique_ptr<GuestMemory> give_up_memory() = 0;
};

}  // namespace pollux::vmm
