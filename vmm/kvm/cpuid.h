// The CPU the guest sees.
#pragma once

#include "vmm/kvm/kvm_abi.h"

#include <cstdint>
#include <vector>

namespace pollux::vmm::kvm {

using CpuidTable = std::vector<kvm_cpuid_entry2>;
inline constexpr std::size_t kMaxCpuidEntries = 256;  // KVM_MAX_CPUID_ENTRIES

// What all vCPUs of a guest share: KVM's supported table, without what cannot be saved and restored here
// (nested virtualization, PMU, asynchronous page faults) and with this machine's topology: one socket,
// `vcpus` cores of one thread. `tsc_deadline`: KVM does not report that feature in the table.
CpuidTable machine_cpuid(CpuidTable supported, std::uint32_t vcpus, bool tsc_deadline);

// For a deterministic machine of one vCPU: without what answers differently each time or elsewhere (random numbers, time
// stamps, transactions, counters of performance), without interrupt controllers and a hypervisor's interfaces.
CpuidTable deterministic_cpuid(CpuidTable supported);

// The same with the APIC id of one vCPU filled in.
CpuidTable vcpu_cpuid(const CpuidTable& machine, std::uint32_t apic_id);

}  // namespace pollux::vmm::kvm
