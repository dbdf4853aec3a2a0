#include "vmm/state/machine_state.h"

#include <gtest/gtest.h>

#include <random>

#include "base/error.h"
#include "vmm/state/config_state.h"
#include "vmm/state/message.h"

namespace pollux::vmm {
namespace {

MachineConfig some_config() {
  MachineConfig config;
  config.memory_bytes = std::uint64_t{256} << 20;
  config.vcpus = 2;
  config.disks = {{1 << 20, false}, {512, true}};
  config.nics = {{{0x52, 0x54, 0, 1, 2, 3}}};
  return config;
}

// State as a machine with two vCPUs and no devices' content would write it; `change` is applied last.
template <class Change>
Bytes state_with(Change change) {
  capnp::MallocMessageBuilder message;
  auto state = message.initRoot<schema::MachineState>();
  state.setVersion(kMachineStateVersion);
  write_config(some_config(), state.initConfig());
  state.setCpuid(cpuid_data(kvm::CpuidTable(3)));
  kvm::VcpuState vcpu;
  vcpu.xsave.resize(sizeof(kvm_xsave));
  vcpu.msrs.resize(5);
  vcpu.registers.rip = 0x1234;
  auto vcpus = state.initVcpus(2);
  write_vcpu(vcpu, vcpus[0]);
  write_vcpu(vcpu, vcpus[1]);
  kvm::IrqchipState irqchip;
  for (std::uint32_t i = 0; i < 3; ++i) irqchip.chips[i].chip_id = i;
  write_irqchip(irqchip, state);
  state.setClockNs(77);
  change(state);
  return to_bytes(message);
}

KvmState read(const Bytes& bytes) {
  ReceivedMessage message("machine state", bytes);
  return message.read<schema::MachineState>(
      [](schema::MachineState::Reader state) { return read_kvm_state(state); });
}

TEST(MachineConfigState, RoundTrips) {
  EXPECT_EQ(decode_machine_config(encode(some_config())), some_config());
}

TEST(MachineConfigState, RefusesWhatIsOutOfLimits) {
  const auto refused = [](auto change) {
    MachineConfig config = some_config();
    change(config);
    EXPECT_THROW((void)decode_machine_config(encode(config)), Error);
  };
  refused([](MachineConfig& c) { c.memory_bytes = 0; });
  refused([](MachineConfig& c) { c.memory_bytes = 4097; });
  refused([](MachineConfig& c) { c.memory_bytes = std::uint64_t{1} << 62; });
  refused([](MachineConfig& c) { c.vcpus = 0; });
  refused([](MachineConfig& c) { c.vcpus = kMaxVcpus + 1; });
  refused([](MachineConfig& c) { c.disks.resize(kMaxDisks + 1, {512, false}); });
  refused([](MachineConfig& c) { c.disks[0].size = 0; });
  refused([](MachineConfig& c) { c.disks[0].size = 513; });
  refused([](MachineConfig& c) { c.nics.resize(kMaxNics + 1); });
}

TEST(MachineState, RoundTrips) {
  const KvmState state = read(state_with([](schema::MachineState::Builder) {}));
  EXPECT_EQ(state.config, some_config());
  EXPECT_EQ(state.cpuid.size(), 3u);
  ASSERT_EQ(state.vcpus.size(), 2u);
  EXPECT_EQ(state.vcpus[1].registers.rip, 0x1234u);
  EXPECT_EQ(state.vcpus[1].msrs.size(), 5u);
  EXPECT_EQ(state.clock.kvmclock_ns, 77u);
  EXPECT_FALSE(state.exit.has_value());
}

TEST(MachineState, KeepsHowTheGuestEnded) {
  const auto exit_of = [](const MachineExit& exit) {
    return read(state_with([&](schema::MachineState::Builder state) { write_exit(exit, state.initExit()); }))
        .exit;
  };
  EXPECT_EQ(exit_of({ExitReason::kPowerOff, ""})->reason, ExitReason::kPowerOff);
  EXPECT_EQ(exit_of({ExitReason::kReset, ""})->reason, ExitReason::kReset);
  EXPECT_EQ(exit_of({ExitReason::kCrash, "triple fault"})->detail, "triple fault");
  EXPECT_FALSE(exit_of({ExitReason::kRequested, ""}).has_value()) << "that was this host's wish";
}

TEST(MachineState, RefusesWrongSizes) {
  const auto refused = [](auto change) { EXPECT_THROW((void)read(state_with(change)), Error); };
  using State = schema::MachineState::Builder;
  refused([](State s) { s.setVersion(kMachineStateVersion + 1); });
  refused([](State s) { s.initCpuid(39); });
  refused([](State s) { s.initCpuid(40 * 257); });
  refused([](State s) { s.initVcpus(1); });
  refused([](State s) { s.getVcpus()[0].initRegisters(1); });
  refused([](State s) { s.getVcpus()[1].initLapic(1025); });
  refused([](State s) { s.getVcpus()[1].initXsave(100); });
  refused([](State s) { s.getVcpus()[1].initXsave((1 << 20) + 1); });
  refused([](State s) { s.getVcpus()[1].initMsrs(17); });
  refused([](State s) { s.getVcpus()[1].initMsrs(16 * 1025); });
  refused([](State s) { s.initPics(2); });
  refused([](State s) { s.initPit(0); });
  refused([](State s) { s.getConfig().setVcpus(3); });
}

TEST(MachineState, DamagedBytesNeverDoMoreThanThrow) {
  const Bytes good = state_with([](schema::MachineState::Builder) {});
  std::mt19937 random(3);
  for (int round = 0; round < 5000; ++round) {
    Bytes bytes = good;
    if (round % 3 == 0) bytes.resize(random() % (bytes.size() + 1));
    for (int i = 0; i < 3 && !bytes.empty(); ++i) {
      bytes[random() % std::min<std::size_t>(bytes.size(), 400)] = std::byte(random() & 0xff);
    }
    try {
      (void)read(bytes);
    } catch (const Error&) {  // refused
    }
  }
  EXPECT_THROW((void)read({}), Error);
  EXPECT_THROW((void)decode_machine_config(Bytes(8, std::byte{0xff})), Error);
}

}  // namespace
}  // namespace pollux::vmm
