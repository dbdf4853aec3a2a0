// The CPU that a guest sees: its topology, its APIC ids, and that it is a guest.
#include "vmm/kvm/cpuid.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <optional>

namespace pollux::vmm::kvm {
namespace {

constexpr std::uint32_t bit(unsigned number) { return std::uint32_t{1} << number; }

kvm_cpuid_entry2 leaf(std::uint32_t function, std::uint32_t index = 0) {
  kvm_cpuid_entry2 entry{};
  entry.function = function;
  entry.index = index;
  // A host's: all that its own topology says would be wrong for the guest.
  entry.eax = entry.ebx = entry.ecx = entry.edx = 0xffff'ffff;
  return entry;
}

CpuidTable host() {
  CpuidTable table{leaf(0), leaf(1), leaf(4, 0), leaf(4, 1), leaf(0xa), leaf(0xb, 0), leaf(0xb, 1), leaf(0x1f, 0),
                   leaf(0x4000'0000), leaf(0x4000'0001), leaf(0x8000'0000), leaf(0x8000'0001), leaf(0x8000'0008),
                   leaf(0x8000'000a), leaf(0x8000'001e), leaf(0x8000'0022)};
  table[0].eax = 0x1f;
  table[3].eax = 0;  // the end of the caches
  return table;
}

std::optional<kvm_cpuid_entry2> find(const CpuidTable& table, std::uint32_t function, std::uint32_t index = 0) {
  const auto found = std::find_if(table.begin(), table.end(), [&](const kvm_cpuid_entry2& entry) {
    return entry.function == function && entry.index == index;
  });
  if (found == table.end()) return std::nullopt;
  return *found;
}

class Topology : public ::testing::TestWithParam<std::uint32_t> {
 protected:
  std::uint32_t vcpus_ = GetParam();
  CpuidTable table_ = machine_cpuid(host(), vcpus_, true);
  // The smallest number of bits that tells the vCPUs apart.
  std::uint32_t bits() const {
    std::uint32_t bits = 0;
    while ((1u << bits) < vcpus_) ++bits;
    return bits;
  }
};

TEST_P(Topology, OneSocketOfSoManyCoresOfOneThread) {
  const auto features = find(table_, 1);
  EXPECT_EQ(features->ebx >> 16 & 0xff, vcpus_);
  EXPECT_EQ((features->edx & bit(28)) != 0, vcpus_ > 1);

  EXPECT_EQ(find(table_, 4, 0)->eax >> 26, vcpus_ - 1);
  EXPECT_EQ(find(table_, 4, 1)->eax, 0u);

  const auto threads = find(table_, 0xb, 0), cores = find(table_, 0xb, 1), end = find(table_, 0xb, 2);
  ASSERT_TRUE(threads && cores && end);
  EXPECT_EQ(threads->eax, 0u);
  EXPECT_EQ(threads->ebx, 1u);
  EXPECT_EQ(threads->ecx, 0x100u);  // level 0: threads
  EXPECT_EQ(cores->eax, bits());
  EXPECT_EQ(cores->ebx, vcpus_);
  EXPECT_EQ(cores->ecx, 0x201u);  // level 1: cores
  EXPECT_EQ(end->ebx, 0u);
  EXPECT_EQ(end->ecx, 2u);  // level 2: none
  EXPECT_FALSE(find(table_, 0x1f));

  const auto amd = find(table_, 0x8000'0008);
  EXPECT_EQ(amd->ecx & 0xff, vcpus_ - 1);
  EXPECT_EQ(amd->ecx >> 12 & 0xf, bits());
}

TEST_P(Topology, EachVcpuHasAnApicIdOfItsOwnAndTheRestInCommon) {
  for (std::uint32_t id = 0; id < vcpus_; ++id) {
    const CpuidTable own = vcpu_cpuid(table_, id);
    ASSERT_EQ(own.size(), table_.size());
    EXPECT_EQ(find(own, 1)->ebx >> 24, id);
    EXPECT_EQ(find(own, 1)->ebx & 0xff'ffff, find(table_, 1)->ebx & 0xff'ffff);
    for (std::uint32_t level = 0; level < 3; ++level) EXPECT_EQ(find(own, 0xb, level)->edx, id);
    EXPECT_EQ(find(own, 0x8000'001e)->eax, id);
    EXPECT_EQ(find(own, 0x8000'001e)->ebx & 0xff, id);       // its core
    EXPECT_EQ(find(own, 0x8000'001e)->ebx >> 8 & 0xff, 0u);  // of one thread
    EXPECT_EQ(find(own, 0x8000'001e)->ecx, 0u);              // of one node
    EXPECT_EQ(find(own, 4, 0)->eax, find(table_, 4, 0)->eax);
  }
}

INSTANTIATE_TEST_SUITE_P(Vcpus, Topology, ::testing::Values(1u, 2u, 3u, 4u, 5u, 8u));

TEST(MachineCpuid, SaysThatItIsAGuestOfKvm) {
  CpuidTable table = host();
  for (kvm_cpuid_entry2& entry : table) {
    if (entry.function == 1) entry.ecx &= ~bit(31);
  }
  table = machine_cpuid(table, 1, false);
  EXPECT_NE(find(table, 1)->ecx & bit(31), 0u);
  EXPECT_EQ(find(table, 0x4000'0000)->ebx, 0xffff'ffff);  // KVM's own signature, untouched
  // kvmclock stays, asynchronous page faults go: they are not saved.
  EXPECT_NE(find(table, 0x4000'0001)->eax & bit(3), 0u);
  EXPECT_EQ(find(table, 0x4000'0001)->eax & (bit(4) | bit(10) | bit(14)), 0u);
}

TEST(MachineCpuid, HasNothingThatCannotBeMovedToAnotherHost) {
  const CpuidTable table = machine_cpuid(host(), 2, false);
  EXPECT_EQ(find(table, 1)->ecx & (bit(5) | bit(15)), 0u);     // VMX, performance capabilities
  EXPECT_EQ(find(table, 0x8000'0001)->ecx & bit(2), 0u);       // SVM
  for (const std::uint32_t function : {0xau, 0x8000'000au, 0x8000'0022u}) {
    const auto entry = find(table, function);
    EXPECT_EQ(entry->eax | entry->ebx | entry->ecx | entry->edx, 0u) << std::hex << function;
  }
}

TEST(MachineCpuid, TheDeadlineTimerIsWhatKvmSaysOfIt) {
  EXPECT_NE(find(machine_cpuid(host(), 1, true), 1)->ecx & bit(24), 0u);
  EXPECT_EQ(find(machine_cpuid(host(), 1, false), 1)->ecx & bit(24), 0u);
}

// An AMD CPU without leaf 0xb: none is invented.
TEST(MachineCpuid, NoTopologyLeafBeyondTheHighestLeaf) {
  CpuidTable table = host();
  table[0].eax = 0xa;
  EXPECT_FALSE(find(machine_cpuid(table, 2, false), 0xb));
}

}  // namespace
}  // namespace pollux::vmm::kvm
