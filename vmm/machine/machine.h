// A whole virtual machine on this host: RAM, vCPUs, interrupt controllers, devices.
//
// It runs, pauses, resumes, tells which pages were dirtied, and can be saved to and restored from an
// explicit, versioned state. It knows nothing of replication: that lives behind the two gates and in whoever
// calls pause().
//
// Threads: one per vCPU, one I/O thread for NICs, consoles and rng, one per disk. The public functions are
// for one controlling thread, except request_exit() and wait_for_exit(), which any thread may call.
#pragma once

#include <chrono>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/bytes.h"
#include "vmm/gates/input_gate.h"
#include "vmm/gates/output_gate.h"
#include "vmm/machine/backends.h"
#include "vmm/machine/machine_config.h"
#include "vmm/memory/guest_memory.h"

namespace pollux::vmm {

enum class ExitReason {
  kPowerOff,   // ACPI S5
  kReset,      // i8042 or the ACPI reset register
  kCrash,      // triple fault, an instruction KVM cannot emulate
  kRequested,  // request_exit()
  kHostFailed,  // this host cannot run the guest on, through no fault of the guest's: another host could
};

struct MachineExit {
  ExitReason reason;
  std::string detail;  // one line for the log, empty when the reason says all
};

// What a fresh machine starts from. The kernel is a bzImage (64-bit boot protocol) or an ELF64 executable
// that is loaded at its physical addresses and entered in 64-bit mode under the same protocol.
struct BootSource {
  std::string kernel_path;
  std::string initrd_path;  // empty: none
  std::string command_line;
};

struct MachineOptions {
  // Nothing: the ring where KVM has it, else the bitmap.
  std::optional<DirtyLog> dirty_log;
};

// Throws UsageError or Error, in one line, when this host cannot run machines: no /dev/kvm, or one that lacks something.
void check_host();

class Machine {
 public:
  // Both throw UsageError for a bad kernel, initrd or config, Error when KVM refuses. The machine starts
  // paused.
  static std::unique_ptr<Machine> boot(const MachineConfig& config, const BootSource& source,
                                       Backends& backends, InputGate& input, OutputGate& output,
                                       const MachineOptions& options = {});
  // `memory` already holds the guest's pages; `state` is what save() gave.
  static std::unique_ptr<Machine> restore(const MachineConfig& config, std::unique_ptr<GuestMemory> memory,
                                          ByteView state, Backends& backends, InputGate& input,
                                          OutputGate& output, const MachineOptions& options = {});
  ~Machine();

  [[nodiscard]] const MachineConfig& config() const;
  [[nodiscard]] GuestMemory& memory();
  [[nodiscard]] DirtyLog dirty_log() const;

  // Lets vCPUs and devices run. Not while running.
  void resume();
  // Returns when no vCPU is in the guest and no device touches guest memory, queues or the output gate on the
  // guest's behalf; disk operations already under way may go on inside the gate, and complete after resume()
  // (or, in a restored machine, are issued again: rule P7). Not while paused.
  void pause();
  [[nodiscard]] bool paused() const;

  // Only while paused:
  void start_dirty_tracking();  // every page is clean from here on
  void stop_dirty_tracking();
  // The pages written since the last call (or since tracking started), ascending.
  std::vector<Gfn> harvest_dirty_pages();
  // Tells the network, through the output gate, that this machine's NICs are now here: switches learn the new
  // port from gratuitous ARP and unsolicited neighbour advertisements for the addresses the guest was seen to
  // use.
  void announce();
  // Everything but RAM: the encoded, versioned state.
  Bytes save();

  // When a vCPU of this object entered the guest for the first time; nothing before.
  [[nodiscard]] std::optional<std::chrono::steady_clock::time_point> first_entry() const;

  // Set once the guest or a caller ended the machine; the machine stays paused-able and saveable after it.
  std::optional<MachineExit> wait_for_exit(std::chrono::milliseconds timeout);
  void request_exit();

  class Impl;
  explicit Machine(std::unique_ptr<Impl> impl);

 private:
  std::unique_ptr<Impl> impl_;
};

}  // namespace pollux::vmm
