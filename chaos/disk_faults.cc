#include "chaos/disk_faults.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/error.h"
#include "base/fd.h"

namespace pollux::chaos {

DiskFaults::DiskFaults(std::string library, std::string control, std::string image)
    : library_(std::move(library)), control_path_(std::move(control)), image_(std::move(image)) {
  const Fd file(::open(control_path_.c_str(), O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600));
  if (!file || ::ftruncate(file.get(), sizeof(DiskFaultControl)) != 0) throw errno_error("make", control_path_);
  void* mapped = ::mmap(nullptr, sizeof(DiskFaultControl), PROT_READ | PROT_WRITE, MAP_SHARED, file.get(), 0);
  if (mapped == MAP_FAILED) throw errno_error("map", control_path_);
  control_ = static_cast<DiskFaultControl*>(mapped);  // zeros: no fault
}

DiskFaults::~DiskFaults() { ::munmap(control_, sizeof(DiskFaultControl)); }

void DiskFaults::set(DiskFault fault, std::chrono::milliseconds delay) {
  control_->delay_ms = static_cast<std::uint32_t>(delay.count());
  control_->fault = static_cast<std::uint32_t>(fault);
}

std::vector<std::string> DiskFaults::loaded_into(const std::vector<std::string>& words) const {
  std::vector<std::string> all{"/usr/bin/env", "LD_PRELOAD=" + library_, std::string(kDiskFaultControlVariable) + "=" + control_path_,
                               std::string(kDiskFaultImageVariable) + "=" + image_};
  all.insert(all.end(), words.begin(), words.end());
  return all;
}

}  // namespace pollux::chaos
