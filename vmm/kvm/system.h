// /dev/kvm: what this host's KVM can do.
#pragma once

#include "vmm/kvm/kvm_abi.h"

#include <cstdint>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/fd.h"

namespace pollux::vmm::kvm {

// A refused ioctl or a missing capability.
class KvmError : public Error {
 public:
  using Error::Error;
};

// ioctl() that is repeated when a signal interrupts it; throws KvmError with the request's name.
int checked_ioctl(const Fd& fd, unsigned long request, const char* name, const void* argument = nullptr);
int checked_ioctl(const Fd& fd, unsigned long request, const char* name, unsigned long argument);

class System {
 public:
  // Throws UsageError when /dev/kvm cannot be opened, KvmError when it lacks something, naming all of it in
  // one line.
  System();

  [[nodiscard]] const Fd& fd() const { return fd_; }
  // The capability's value: 0 when absent, else 1 or what the KVM API documents for it.
  [[nodiscard]] int capability(long number) const;
  [[nodiscard]] std::size_t run_area_bytes() const { return run_area_bytes_; }
  [[nodiscard]] std::vector<kvm_cpuid_entry2> supported_cpuid() const;
  // The MSRs this KVM says belong to a vCPU's state (KVM_GET_MSR_INDEX_LIST); not all can be read by every
  // guest.
  [[nodiscard]] std::vector<std::uint32_t> msr_indices() const;

 private:
  Fd fd_;
  std::size_t run_area_bytes_ = 0;
};

}  // namespace pollux::vmm::kvm
