#include "vmm/kvm/system.h"

#include <fcntl.h>
#include <sys/ioctl.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>

namespace pollux::vmm::kvm {
namespace {

struct Required {
  long number;
  const char* name;
};

// Everything the machine cannot do without. The dirty ring is not here: the bitmap stands in for it.
constexpr std::array kRequired{
    Required{KVM_CAP_USER_MEMORY, "user memory"},
    Required{KVM_CAP_IRQCHIP, "in-kernel irqchip"},
    Required{KVM_CAP_PIT2, "in-kernel PIT"},
    Required{KVM_CAP_PIT_STATE2, "PIT state"},
    Required{KVM_CAP_SET_TSS_ADDR, "TSS address"},
    Required{KVM_CAP_EXT_CPUID, "extended CPUID"},
    Required{KVM_CAP_MP_STATE, "MP state"},
    Required{KVM_CAP_VCPU_EVENTS, "vCPU events"},
    Required{KVM_CAP_DEBUGREGS, "debug registers"},
    Required{KVM_CAP_XSAVE, "XSAVE"},
    Required{KVM_CAP_XCRS, "XCRs"},
    Required{KVM_CAP_ADJUST_CLOCK, "settable clock"},
    Required{KVM_CAP_GET_TSC_KHZ, "TSC frequency"},
    Required{KVM_CAP_IOEVENTFD, "ioeventfd"},
    Required{KVM_CAP_IMMEDIATE_EXIT, "immediate exit"},
    Required{KVM_CAP_SREGS2, "system registers with PDPTRs"},
};

template <class T>
int retried_ioctl(const Fd& fd, unsigned long request, const char* name, T argument) {
  int result = 0;
  do {
    result = ::ioctl(fd.get(), request, argument);
  } while (result < 0 && errno == EINTR);
  if (result < 0) throw KvmError(std::string("KVM refused ") + name + ": " + std::strerror(errno));
  return result;
}

}  // namespace

int checked_ioctl(const Fd& fd, unsigned long request, const char* name, const void* argument) {
  return retried_ioctl(fd, request, name, argument);
}

int checked_ioctl(const Fd& fd, unsigned long request, const char* name, unsigned long argument) {
  return retried_ioctl(fd, request, name, argument);
}

System::System() : fd_(::open("/dev/kvm", O_RDWR | O_CLOEXEC)) {
  if (!fd_) throw UsageError(errno_error("open", "/dev/kvm").what());
  const int version = checked_ioctl(fd_, KVM_GET_API_VERSION, "KVM_GET_API_VERSION");
  if (version != KVM_API_VERSION)
    throw KvmError("KVM has API version " + std::to_string(version) + ", not 12");
  std::string missing;
  for (const Required& required : kRequired) {
    if (capability(required.number) > 0) continue;
    if (!missing.empty()) missing += ", ";
    missing += required.name;
  }
  if (!missing.empty()) throw KvmError("KVM on this host lacks: " + missing);
  run_area_bytes_ =
      static_cast<std::size_t>(checked_ioctl(fd_, KVM_GET_VCPU_MMAP_SIZE, "KVM_GET_VCPU_MMAP_SIZE"));
}

int System::capability(long number) const {
  return std::max(0, ::ioctl(fd_.get(), KVM_CHECK_EXTENSION, number));
}

std::vector<kvm_cpuid_entry2> System::supported_cpuid() const {
  constexpr std::uint32_t kMaxEntries = 256;  // KVM_MAX_CPUID_ENTRIES
  std::vector<std::uint64_t> raw((sizeof(kvm_cpuid2) + kMaxEntries * sizeof(kvm_cpuid_entry2)) / 8 + 1);
  auto* list = reinterpret_cast<kvm_cpuid2*>(raw.data());
  list->nent = kMaxEntries;
  checked_ioctl(fd_, KVM_GET_SUPPORTED_CPUID, "KVM_GET_SUPPORTED_CPUID", list);
  return {list->entries, list->entries + std::min(list->nent, kMaxEntries)};
}

std::vector<std::uint32_t> System::msr_indices() const {
  kvm_msr_list probe{};
  // Fails with E2BIG and the number wanted.
  (void)::ioctl(fd_.get(), KVM_GET_MSR_INDEX_LIST, &probe);
  std::vector<std::uint32_t> raw(1 + probe.nmsrs);
  raw[0] = probe.nmsrs;
  checked_ioctl(fd_, KVM_GET_MSR_INDEX_LIST, "KVM_GET_MSR_INDEX_LIST", raw.data());
  return {raw.begin() + 1, raw.begin() + 1 + std::min<std::ptrdiff_t>(raw[0], probe.nmsrs)};
}

}  // namespace pollux::vmm::kvm
