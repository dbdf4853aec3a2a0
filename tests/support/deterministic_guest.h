// A deterministic machine running one of the guests in tests/guests/lockstep, with disks in memory, consoles and NICs
// that the test writes and reads.
#pragma once

#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "vmm/deterministic/deterministic_machine.h"

namespace pollux::testing {

// What the guest's clock shows.
enum class GuestClock {
  kHost,
  kMadeUp,     // a millisecond more at each reading: two runs of a guest that does not sleep are the same run
  kProcessor,  // the processor time of the machine's thread, guest included, whatever else the host does
};

struct DeterministicGuestConfig {
  std::string kernel{};  // a guest's name, or a path
  std::string command_line{};
  std::uint64_t memory_bytes = std::uint64_t{16} << 20;
  std::vector<std::uint64_t> disks{};  // bytes of each
  unsigned nics = 0;
  GuestClock clock = GuestClock::kHost;
  vmm::DeterministicOptions options{};
};

// What was recorded, and what each epoch ended with.
struct RecordedRun {
  std::vector<Bytes> inputs;  // encoded
  std::vector<vmm::EpochDigest> digests;
  std::vector<vmm::EpochEnd> epochs;
  std::optional<vmm::MachineExit> exit;
  // The guest powered off, and said that all is well.
  [[nodiscard]] bool ended() const {
    return exit.has_value() && exit->reason == vmm::ExitReason::kPowerOff && exit->detail.empty();
  }
  // One for all epochs.
  [[nodiscard]] vmm::Digest digest() const;
};

class DeterministicGuest {
 public:
  explicit DeterministicGuest(const DeterministicGuestConfig& config);
  // A copy of another's machine as it is between two epochs, with its disks.
  DeterministicGuest(const DeterministicGuestConfig& config, DeterministicGuest& other);
  // What `state` says, on `memory`, with empty disks.
  DeterministicGuest(const DeterministicGuestConfig& config, ByteView state, std::unique_ptr<vmm::GuestMemory> memory);
  ~DeterministicGuest();

  [[nodiscard]] vmm::DeterministicMachine& machine() { return *machine_; }
  // Records until the machine ended, or for so many epochs more. `between` is called after each.
  RecordedRun record(vmm::EpochLength length, std::size_t epochs = ~std::size_t{0},
                     const std::function<void(const vmm::EpochEnd&)>& between = {});
  // The same, behind what was recorded before.
  void record(RecordedRun& run, vmm::EpochLength length, std::size_t epochs,
              const std::function<void(const vmm::EpochEnd&)>& between = {});
  // Repeats the run from this machine's present epoch on; empty when every epoch was alike, else how the first that
  // was not differs.
  std::string replay(const RecordedRun& run, std::size_t epochs = ~std::size_t{0},
                     const std::function<void(const vmm::EpochEnd&)>& between = {});

  [[nodiscard]] std::string console();
  [[nodiscard]] Bytes& disk(std::size_t index);       // while no operation is under way
  [[nodiscard]] Bytes disk_copy(std::size_t index);  // at any time
  [[nodiscard]] std::vector<Bytes> frames_sent();
  // From any thread.
  void type(const std::string& text);
  void send_frame(Bytes frame);
  // No disk operation ends before release_disks().
  void hold_disks();
  void release_disks();
  // An operation stands and waits for that.
  [[nodiscard]] bool is_disk_held();
  void wait_until_disk_held();

 private:
  class Gate;
  class Host;
  class PipeConsole;

  void open_backends();

  DeterministicGuestConfig config_;
  std::unique_ptr<Gate> gate_;
  std::unique_ptr<Host> host_;
  std::unique_ptr<vmm::Backends> backends_;
  int console_input_ = -1;  // the pipe's writing end
  int nic_input_ = -1;
  std::unique_ptr<vmm::DeterministicMachine> machine_;
};

std::string guest_path(const std::string& name);

// As a fault of the memory might, and nobody is told: every counted site becomes a jump to itself. How many were found.
std::size_t make_sites_loop(const vmm::GuestMemory& memory);

}  // namespace pollux::testing
