#include "vmm/machine/machine_config.h"

#include <algorithm>

#include "vmm/block/image.h"
#include "vmm/state/config_state.h"
#include "vmm/state/message.h"

namespace pollux::vmm {
namespace {

void require(bool condition, const char* what) {
  if (!condition) throw Error(std::string("machine config: ") + what);
}

}  // namespace

void check(const MachineConfig& config) {
  require(config.memory_bytes > 0 && config.memory_bytes % kPageSize == 0,
          "memory is not a multiple of 4 KiB");
  require(config.memory_bytes <= kMaxMemory, "too much memory");
  require(config.profile <= MachineProfile::kDeterministic, "unknown profile");
  require(config.profile != MachineProfile::kDeterministic || config.vcpus == 1, "a deterministic machine has one vCPU");
  require(config.vcpus >= 1 && config.vcpus <= kMaxVcpus, "bad number of vCPUs");
  require(config.disks.size() <= kMaxDisks, "too many disks");
  require(config.nics.size() <= kMaxNics, "too many NICs");
  for (const DiskConfig& disk : config.disks) {
    require(disk.size > 0 && disk.size % kSectorSize == 0, "disk size is not a multiple of 512 bytes");
  }
}

void write_config(const MachineConfig& config, schema::MachineConfigState::Builder state) {
  state.setMemoryBytes(config.memory_bytes);
  state.setVcpus(config.vcpus);
  auto disks = state.initDisks(static_cast<unsigned>(config.disks.size()));
  for (unsigned i = 0; i < disks.size(); ++i) {
    disks[i].setSize(config.disks[i].size);
    disks[i].setReadOnly(config.disks[i].read_only);
  }
  auto nics = state.initNics(static_cast<unsigned>(config.nics.size()));
  for (unsigned i = 0; i < nics.size(); ++i)
    nics.set(i, {config.nics[i].mac.data(), config.nics[i].mac.size()});
  state.setProfile(static_cast<std::uint8_t>(config.profile));
}

MachineConfig read_config(schema::MachineConfigState::Reader state) {
  MachineConfig config;
  config.memory_bytes = state.getMemoryBytes();
  config.vcpus = state.getVcpus();
  require(state.getDisks().size() <= kMaxDisks, "too many disks");
  require(state.getNics().size() <= kMaxNics, "too many NICs");
  for (const auto disk : state.getDisks()) config.disks.push_back({disk.getSize(), disk.getReadOnly()});
  for (const auto mac : state.getNics()) {
    NicConfig nic;
    require(mac.size() == nic.mac.size(), "bad MAC address");
    std::copy(mac.begin(), mac.end(), nic.mac.begin());
    config.nics.push_back(nic);
  }
  config.profile = static_cast<MachineProfile>(state.getProfile());
  check(config);
  return config;
}

Bytes encode(const MachineConfig& config) {
  capnp::MallocMessageBuilder message;
  write_config(config, message.initRoot<schema::MachineConfigState>());
  return to_bytes(message);
}

MachineConfig decode_machine_config(ByteView bytes) {
  ReceivedMessage message("machine config", bytes);
  return message.read<schema::MachineConfigState>(
      [](schema::MachineConfigState::Reader state) { return read_config(state); });
}

}  // namespace pollux::vmm
