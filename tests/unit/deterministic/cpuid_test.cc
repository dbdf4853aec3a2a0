// What a deterministic machine's guest is told of its processor.
#include <gtest/gtest.h>

#include <algorithm>

#include "vmm/kvm/cpuid.h"

namespace pollux::testing {
namespace {

using vmm::kvm::CpuidTable;

constexpr std::uint32_t bit(unsigned number) { return std::uint32_t{1} << number; }

// A processor that has everything.
CpuidTable everything() {
  CpuidTable table;
  for (const std::uint32_t function : {0x0u, 0x1u, 0x6u, 0x7u, 0xau, 0xbu, 0xdu, 0x15u, 0x16u, 0x4000'0000u, 0x4000'0001u,
                                       0x8000'0001u, 0x8000'0007u, 0x8000'0008u}) {
    kvm_cpuid_entry2 entry{};
    entry.function = function;
    entry.eax = entry.ebx = entry.ecx = entry.edx = ~0u;
    table.push_back(entry);
  }
  return table;
}

class DeterministicCpuid : public ::testing::Test {
 protected:
  [[nodiscard]] const kvm_cpuid_entry2& leaf(std::uint32_t function) const {
    const auto found = std::ranges::find(table_, function, &kvm_cpuid_entry2::function);
    if (found == table_.end()) throw std::out_of_range("no such leaf");
    return *found;
  }

  // Bits of the vendors' manuals: Intel SDM vol. 2A, CPUID; AMD APM vol. 3, appendix E.
  CpuidTable table_ = vmm::kvm::deterministic_cpuid(everything());
};

TEST_F(DeterministicCpuid, HasNoRandomNumbers) {
  EXPECT_EQ(leaf(0x1).ecx & bit(30), 0u) << "RDRAND";
  EXPECT_EQ(leaf(0x7).ebx & bit(18), 0u) << "RDSEED";
}

TEST_F(DeterministicCpuid, HasNoTimeOfItsOwn) {
  EXPECT_EQ(leaf(0x1).ecx & bit(24), 0u) << "TSC deadline";
  EXPECT_EQ(leaf(0x8000'0001).edx & bit(27), 0u) << "RDTSCP";
  EXPECT_EQ(leaf(0x7).ecx & bit(22), 0u) << "RDPID";
  EXPECT_EQ(leaf(0x8000'0007).edx & bit(8), 0u) << "invariant TSC";
  EXPECT_EQ(leaf(0x7).ecx & bit(5), 0u) << "TPAUSE, UMWAIT";
  EXPECT_EQ(leaf(0x1).ecx & bit(3), 0u) << "MONITOR";
  EXPECT_EQ(leaf(0x15).ebx | leaf(0x16).eax, 0u) << "frequencies";
}

TEST_F(DeterministicCpuid, HasNothingThatAbortsOrCountsAsItPleases) {
  EXPECT_EQ(leaf(0x7).ebx & (bit(4) | bit(11)), 0u) << "transactions";
  EXPECT_EQ(leaf(0xa).eax, 0u) << "performance counters";
}

TEST_F(DeterministicCpuid, HasNoInterruptControllerAndNoHypervisor) {
  EXPECT_EQ(leaf(0x1).edx & bit(9), 0u) << "APIC";
  EXPECT_EQ(leaf(0x1).ecx & bit(21), 0u) << "x2APIC";
  EXPECT_EQ(leaf(0x1).ecx & bit(31), 0u) << "hypervisor";
  EXPECT_TRUE(std::ranges::none_of(table_, [](const auto& entry) { return entry.function >> 28 == 4; })) << "kvmclock";
}

// It is cut down, not emptied.
TEST_F(DeterministicCpuid, KeepsTheRest) {
  constexpr std::uint32_t kSse42 = bit(20), kTsc = bit(4), kSse2 = bit(26);
  EXPECT_EQ(leaf(0x1).ecx & kSse42, kSse42);
  EXPECT_EQ(leaf(0x1).edx & (kTsc | kSse2), kTsc | kSse2);
}

}  // namespace
}  // namespace pollux::testing
