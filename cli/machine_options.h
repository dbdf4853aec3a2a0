// A new machine, as `vm` and `primary` take it: kernel, memory, vCPUs, and the host's side.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "cli/host_options.h"
#include "vmm/deterministic/deterministic_machine.h"
#include "vmm/make_machine.h"

namespace pollux::cli {

// --epoch-length, if it was given. Throws UsageError.
[[nodiscard]] vmm::EpochLength epoch_length_of(const std::optional<std::uint64_t>& sites);

class MachineOptions {
 public:
  void add_to(CLI::App& app);

  [[nodiscard]] const HostOptions& host() const { return host_; }
  // Throws UsageError naming the option.
  [[nodiscard]] std::unique_ptr<vmm::Machine> boot(vmm::Backends& backends, vmm::InputGate& input,
                                                   vmm::OutputGate& output) const;
  [[nodiscard]] bool deterministic() const { return profile() == vmm::MachineProfile::kDeterministic; }
  // The same for a machine known to be deterministic, see check_deterministic().
  [[nodiscard]] std::unique_ptr<vmm::DeterministicMachine> boot_deterministic(vmm::Backends& backends,
                                                                              vmm::InputGate& input,
                                                                              vmm::OutputGate& output) const;
  // What can be said without opening anything. Throw UsageError naming the option.
  void check() const;
  void check_deterministic(const char* asked_by) const;

  [[nodiscard]] vmm::BootSource boot_source() const { return {kernel_, initrd_, command_line_}; }
  [[nodiscard]] vmm::DeterministicOptions deterministic_options() const;
  [[nodiscard]] vmm::EpochLength epoch_length() const { return epoch_length_of(epoch_length_); }

 private:
  [[nodiscard]] vmm::MachineConfig config(vmm::Backends& backends) const;
  [[nodiscard]] std::uint64_t memory_bytes() const;
  [[nodiscard]] std::vector<vmm::NicConfig> nics() const;
  [[nodiscard]] vmm::MachineOptions machine_options() const;
  [[nodiscard]] vmm::MachineProfile profile() const;
  void check_profile() const;

  HostOptions host_;
  std::string kernel_;
  std::string initrd_;
  std::string command_line_ = "console=ttyS0";
  std::string memory_ = "256M";
  unsigned vcpus_ = 1;
  std::string dirty_log_ = "bitmap";
  std::string profile_ = "standard";
  std::optional<std::uint64_t> epoch_length_;
};

}  // namespace pollux::cli
