#include "cli/machine_options.h"

#include <CLI/CLI.hpp>

#include "base/error.h"
#include "cli/config_file.h"
#include "cli/memory_sizes.h"
#include "vmm/make_machine.h"
#include "vmm/memory/guest_memory.h"
#include "vmm/net/tap.h"

namespace pollux::cli {
namespace {

constexpr std::uint64_t kMinEpochLength = 1'000;
constexpr std::uint64_t kMaxEpochLength = 1'000'000;

// Locally administered, "POLUX" in the rest, and the NIC's number: stable, so that a restarted guest keeps its name.
vmm::MacAddress default_mac(std::size_t index) {
  return {0x52, 0x50, 0x4f, 0x4c, 0x58, static_cast<std::uint8_t>(index + 1)};
}

// The loader calls things by their names, which are the options' too. `memory`: the value of --memory.
template <class Boot>
auto naming_options(const std::string& memory, Boot boot) {
  try {
    return boot();
  } catch (const UsageError& error) {
    const std::string text = error.what();
    for (const char* name : {"kernel", "initrd", "cmdline", "memory", "dirty-log"}) {
      if (text.rfind(name, 0) == 0) throw UsageError("--" + text);
    }
    throw;
  } catch (const vmm::GuestMemoryError& error) {
    throw UsageError("--memory " + memory + ": " + error.what());
  }
}

}  // namespace

vmm::EpochLength epoch_length_of(const std::optional<std::uint64_t>& sites) {
  if (!sites) return {};
  if (*sites < kMinEpochLength || *sites > kMaxEpochLength) {
    throw UsageError("--epoch-length " + std::to_string(*sites) + ": expected 1000 to 1000000");
  }
  return {*sites};
}

void MachineOptions::add_to(CLI::App& app) {
  app.add_option("--profile", profile_, "standard: a PC, for any guest; deterministic: for guests made with vmm/guest")
      ->capture_default_str();
  app.add_option("--epoch-length", epoch_length_, "of a deterministic machine, in counted sites, 1000 to 1000000 (100000)")
      ->type_name("N");
  app.add_option("--kernel", kernel_, "Linux bzImage, or an ELF64 kernel")->type_name("PATH");
  app.add_option("--initrd", initrd_, "initial RAM disk")->type_name("PATH");
  app.add_option("--cmdline", command_line_, "kernel command line")->capture_default_str();
  app.add_option("--memory", memory_, "guest RAM, e.g. 512M or 2G")->capture_default_str();
  app.add_option("--cpus", vcpus_, "virtual CPUs, 1 to 8")->capture_default_str();
  app.add_option("--dirty-log", dirty_log_, "how KVM reports dirty pages: bitmap or ring")->capture_default_str();
  host_.add_to(app);
  add_config_option(app);
}

void MachineOptions::check() const {
  if (kernel_.empty()) throw UsageError("--kernel is required");
  if (memory_bytes() % kPageSize != 0) throw UsageError("--memory " + memory_ + ": expected a multiple of 4K");
  if (vcpus_ < 1 || vcpus_ > vmm::kMaxVcpus) throw UsageError("--cpus " + std::to_string(vcpus_) + ": expected 1 to 8");
  check_profile();
  (void)machine_options();
  (void)host_.disks();
  (void)nics();
}

void MachineOptions::check_deterministic(const char* asked_by) const {
  if (profile() != vmm::MachineProfile::kDeterministic) {
    throw UsageError(std::string(asked_by) + ": only with --profile deterministic");
  }
}

std::unique_ptr<vmm::Machine> MachineOptions::boot(vmm::Backends& backends, vmm::InputGate& input,
                                                   vmm::OutputGate& output) const {
  return naming_options(memory_, [&] {
    return vmm::boot_machine(config(backends), boot_source(), backends, input, output, machine_options());
  });
}

std::unique_ptr<vmm::DeterministicMachine> MachineOptions::boot_deterministic(vmm::Backends& backends,
                                                                              vmm::InputGate& input,
                                                                              vmm::OutputGate& output) const {
  return naming_options(memory_, [&] {
    return vmm::DeterministicMachine::boot(config(backends), boot_source(), backends, input, output,
                                           deterministic_options());
  });
}

vmm::DeterministicOptions MachineOptions::deterministic_options() const {
  const vmm::MachineOptions options = machine_options();
  vmm::DeterministicOptions deterministic;
  deterministic.dirty_log = options.dirty_log;
  deterministic.epoch_length = options.epoch_length;
  return deterministic;
}

vmm::MachineConfig MachineOptions::config(vmm::Backends& backends) const {
  vmm::MachineConfig config;
  config.memory_bytes = memory_bytes();
  config.vcpus = vcpus_;
  config.profile = profile();
  for (std::uint32_t i = 0; i < backends.disk_count(); ++i) {
    config.disks.push_back({backends.disk({i}).size(), host_.disks().at(i).read_only});
  }
  config.nics = nics();
  return config;
}

std::uint64_t MachineOptions::memory_bytes() const { return parse_memory_size("--memory", memory_, kSmallestGuest); }

std::vector<vmm::NicConfig> MachineOptions::nics() const {
  std::vector<vmm::NicConfig> nics;
  for (const NetOption& net : host_.nets()) {
    const vmm::MacAddress mac = net.mac.value_or(default_mac(nics.size()));
    for (const vmm::NicConfig& other : nics) {
      if (other.mac == mac) throw UsageError("--net: MAC address " + vmm::to_string(mac) + " is given twice");
    }
    nics.push_back({mac});
  }
  return nics;
}

vmm::MachineProfile MachineOptions::profile() const {
  if (profile_ == "standard") return vmm::MachineProfile::kStandard;
  if (profile_ == "deterministic") return vmm::MachineProfile::kDeterministic;
  throw UsageError("--profile " + profile_ + ": expected standard or deterministic");
}

void MachineOptions::check_profile() const {
  if (profile() == vmm::MachineProfile::kStandard) {
    if (epoch_length_) throw UsageError("--epoch-length: only with --profile deterministic");
    return;
  }
  if (vcpus_ != 1) throw UsageError("--cpus " + std::to_string(vcpus_) + ": a deterministic machine has one");
  if (!initrd_.empty()) throw UsageError("--initrd: guests of a deterministic machine take none");
  (void)epoch_length();
}

vmm::MachineOptions MachineOptions::machine_options() const {
  vmm::MachineOptions options;
  options.epoch_length = epoch_length();
  if (dirty_log_ != "ring" && dirty_log_ != "bitmap") {
    throw UsageError("--dirty-log " + dirty_log_ + ": expected bitmap or ring");
  }
  options.dirty_log = dirty_log_ == "ring" ? vmm::DirtyLog::kRing : vmm::DirtyLog::kBitmap;
  return options;
}

}  // namespace pollux::cli
