// A whole virtual machine on this host: RAM, vCPUs, interrupt controllers, devices.
//
// It runs, pauses, resumes, tells which pages were dirtied, and can be saved to and restored from an
// explicit, versioned state. It knows nothing of replication: that lives behind the two gates and in whoever
// calls pause(). Its configuration says of which kind it is: see StockMachine and DeterministicMachine, and
// vmm/make_machine.h, which makes either.
#pragma once

#include <chrono>
#include <optional>
#include <string>
#include <vector>

#include "base/bytes.h"
#include "vmm/machine/machine_config.h"
#include "vmm/memory/guest_memory.h"

namespace pollux::vmm {

enum class ExitReason {
  kPowerOff,   // ACPI S5; or a deterministic guest ended: with a detail, if it says that it failed
  kReset,      // i8042 or the ACPI reset register
  kCrash,      // triple fault, an instruction KVM cannot emulate
  kRequested,  // request_exit()
  kHostFailed,  // this host cannot run the guest on, through no fault of the guest's: another host could
};

struct MachineExit {
  ExitReason reason;
  std::string detail;  // one line for the log, empty when the reason says all
  bool operator==(const MachineExit&) const = default;
};

// What a fresh machine starts from. The kernel is a bzImage (64-bit boot protocol) or an ELF64 executable
// that is loaded at its physical addresses and entered in 64-bit mode under the same protocol.
struct BootSource {
  std::string kernel_path;
  std::string initrd_path;  // empty: none
  std::string command_line;
};

// Throws UsageError or Error, in one line, when this host cannot run machines: no /dev/kvm, or one that lacks something.
void check_host();

// The public functions are for one controlling thread, except request_exit() and wait_for_exit(), which any thread may
// call. A machine starts paused.
class Machine {
 public:
  Machine() = default;
  Machine(const Machine&) = delete;
  Machine& operator=(const Machine&) = delete;
  virtual ~Machine() = default;

  [[nodiscard]] virtual const MachineConfig& config() const = 0;
  [[nodiscard]] virtual GuestMemory& memory() = 0;
  [[nodiscard]] virtual DirtyLog dirty_log() const = 0;

  // Lets vCPUs and devices run. Not while running.
  virtual void resume() = 0;
  // Returns when no vCPU is in the guest (of a deterministic machine: at an epoch's end) and no device touches guest
  // memory, queues or the output gate on the guest's behalf; disk operations already under way may go on inside the
  // gate, and complete after resume() (or, in a restored machine, are issued again: rule P7). Not while paused.
  virtual void pause() = 0;
  [[nodiscard]] virtual bool paused() const = 0;

  // Only while paused:
  virtual void start_dirty_tracking() = 0;  // every page is clean from here on
  virtual void stop_dirty_tracking() = 0;
  // The pages written since the last call (or since tracking started), ascending.
  virtual std::vector<Gfn> harvest_dirty_pages() = 0;
  // Tells the network, through the output gate, that this machine's NICs are now here: switches learn the new
  // port from gratuitous ARP and unsolicited neighbour advertisements for the addresses the guest was seen to
  // use.
  virtual void announce() = 0;
  // Everything but RAM: the encoded, versioned state.
  virtual Bytes save() = 0;

  // When a vCPU of this object entered the guest for the first time; nothing before.
  [[nodiscard]] virtual std::optional<std::chrono::steady_clock::time_point> first_entry() const = 0;

  // Set once the guest or a caller ended the machine; the machine stays paused-able and saveable after it.
  virtual std::optional<MachineExit> wait_for_exit(std::chrono::milliseconds timeout) = 0;
  virtual void request_exit() = 0;
};

}  // namespace pollux::vmm
