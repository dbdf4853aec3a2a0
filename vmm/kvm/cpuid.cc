#include "vmm/kvm/cpuid.h"

#include <algorithm>
#include <bit>

namespace pollux::vmm::kvm {
namespace {

constexpr std::uint32_t bit(unsigned number) { return std::uint32_t{1} << number; }

// Bits of an APIC id that count cores.
std::uint32_t core_bits(std::uint32_t vcpus) { return static_cast<std::uint32_t>(std::bit_width(vcpus - 1)); }

void remove_leaf(CpuidTable& table, std::uint32_t function) {
  std::erase_if(table, [=](const kvm_cpuid_entry2& entry) { return entry.function == function; });
}

kvm_cpuid_entry2 topology_level(std::uint32_t index, std::uint32_t type, std::uint32_t shift,
                                std::uint32_t count) {
  kvm_cpuid_entry2 entry{};
  entry.function = 0xb;
  entry.index = index;
  entry.flags = KVM_CPUID_FLAG_SIGNIFCANT_INDEX;
  entry.eax = shift;
  entry.ebx = count;
  entry.ecx = index | type << 8;
  return entry;
}

// Leaf 0xb (Intel SDM vol. 2A; also AMD APM vol. 3): level 0 is threads of a core, level 1 cores of the
// socket.
void set_topology(CpuidTable& table, std::uint32_t vcpus) {
  remove_leaf(table, 0xb);
  remove_leaf(table, 0x1f);  // the same with more levels; without it 0xb is used
  const auto base = std::find_if(table.begin(), table.end(), [](const auto& e) { return e.function == 0; });
  if (base == table.end() || base->eax < 0xb) return;
  table.push_back(topology_level(0, 1, 0, 1));
  table.push_back(topology_level(1, 2, core_bits(vcpus), vcpus));
  table.push_back(topology_level(2, 0, 0, 0));
}

void adjust_features(kvm_cpuid_entry2& entry, std::uint32_t vcpus, bool tsc_deadline) {
  constexpr std::uint32_t kVmx = bit(5), kPdcm = bit(15), kTscDeadline = bit(24), kHypervisor = bit(31);
  constexpr std::uint32_t kHyperThreading = bit(28);  // "EBX[23:16] is valid"
  entry.ecx &= ~(kVmx | kPdcm | kTscDeadline);
  entry.ecx |= kHypervisor | (tsc_deadline ? kTscDeadline : 0);
  entry.ebx = (entry.ebx & 0x0000'ffff) | vcpus << 16;
  entry.edx = vcpus > 1 ? entry.edx | kHyperThreading : entry.edx & ~kHyperThreading;
}

void adjust_entry(kvm_cpuid_entry2& entry, std::uint32_t vcpus, bool tsc_deadline) {
  constexpr std::uint32_t kSvm = bit(2), kPerfCounters = bit(23) | bit(24) | bit(28);
  switch (entry.function) {
    case 0x1: adjust_features(entry, vcpus, tsc_deadline); break;
    case 0x4:  // deterministic cache parameters: cores per socket, and sharing of one cache by all at most
      if ((entry.eax & 0x1f) != 0) entry.eax = (entry.eax & 0x03ff'ffff) | (vcpus - 1) << 26;
      break;
    case 0xa: entry.eax = entry.ebx = entry.ecx = entry.edx = 0; break;  // architectural PMU
    case 0x4000'0001:  // Documentation/virt/kvm/x86/cpuid.rst: asynchronous page faults in all their forms
      entry.eax &= ~(bit(4) | bit(10) | bit(14));
      break;
    case 0x8000'0001: entry.ecx &= ~(kSvm | kPerfCounters); break;
    case 0x8000'0008: entry.ecx = (entry.ecx & 0xffff'0f00) | core_bits(vcpus) << 12 | (vcpus - 1); break;
    case 0x8000'000a:  // SVM features
    case 0x8000'0022:  // AMD's PMU
      entry.eax = entry.ebx = entry.ecx = entry.edx = 0;
      break;
    case 0x8000'001e: entry.ebx = entry.ecx = entry.edx = 0; break;  // one thread per core, one node
    default: break;
  }
}

void remove_nondeterminism(kvm_cpuid_entry2& entry) {
  switch (entry.function) {
    case 0x1:  // MONITOR, x2APIC, TSC deadline, RDRAND, hypervisor; APIC
      entry.ecx &= ~(bit(3) | bit(21) | bit(24) | bit(30) | bit(31));
      entry.edx &= ~bit(9);
      break;
    case 0x6:  // thermal and power management
    case 0x15:
    case 0x16: entry.eax = entry.ebx = entry.ecx = entry.edx = 0; break;  // frequencies
    case 0x7:
      if (entry.index != 0) break;
      entry.ebx &= ~(bit(4) | bit(11) | bit(18));  // HLE, RTM, RDSEED
      entry.ecx &= ~(bit(5) | bit(22));            // WAITPKG, RDPID
      break;
    case 0x8000'0001: entry.edx &= ~bit(27); break;  // RDTSCP
    case 0x8000'0007: entry.edx &= ~bit(8); break;   // invariant TSC
    default: break;
  }
}

}  // namespace

CpuidTable deterministic_cpuid(CpuidTable supported) {
  CpuidTable table = machine_cpuid(std::move(supported), 1, false);
  std::erase_if(table, [](const kvm_cpuid_entry2& entry) {
    return entry.function >= 0x4000'0000 && entry.function < 0x5000'0000;
  });
  for (kvm_cpuid_entry2& entry : table) remove_nondeterminism(entry);
  return table;
}

CpuidTable machine_cpuid(CpuidTable table, std::uint32_t vcpus, bool tsc_deadline) {
  for (kvm_cpuid_entry2& entry : table) adjust_entry(entry, vcpus, tsc_deadline);
  set_topology(table, vcpus);
  return table;
}

CpuidTable vcpu_cpuid(const CpuidTable& machine, std::uint32_t apic_id) {
  CpuidTable table = machine;
  for (kvm_cpuid_entry2& entry : table) {
    switch (entry.function) {
      case 0x1: entry.ebx = (entry.ebx & 0x00ff'ffff) | apic_id << 24; break;
      case 0xb: entry.edx = apic_id; break;
      case 0x8000'001e:
        entry.eax = apic_id;
        entry.ebx = apic_id;
        break;
      default: break;
    }
  }
  return table;
}

}  // namespace pollux::vmm::kvm
