// Faults of a replica's disk image: a library, loaded into the replica in front of the C library, lets the system calls on this
// one file fail, or take their time, as long as the campaign says so.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <string>
#include <vector>

namespace pollux::chaos {

enum class DiskFault : std::uint32_t {
  kNone,
  kError,  // reads, writes, discards and fdatasync fail with EIO
  kFull,   // writes and discards fail with ENOSPC
  kSlow,   // fdatasync takes longer
  kReadError,  // reads fail with EIO
};

// Shared by the campaign and the library in a file. `fault` is a DiskFault.
struct DiskFaultControl {
  std::atomic<std::uint32_t> fault;
  std::atomic<std::uint32_t> delay_ms;  // of kSlow
};
static_assert(std::atomic<std::uint32_t>::is_always_lock_free);

// The library's environment: the control file, and the image.
inline constexpr const char* kDiskFaultControlVariable = "POLLUX_DISK_FAULT_CONTROL";
inline constexpr const char* kDiskFaultImageVariable = "POLLUX_DISK_FAULT_IMAGE";

// The campaign's side, for one image.
class DiskFaults {
 public:
  // `library`: libpollux-disk-faults.so. Makes the control file. Throws Error.
  DiskFaults(std::string library, std::string control, std::string image);
  ~DiskFaults();
  DiskFaults(const DiskFaults&) = delete;
  DiskFaults& operator=(const DiskFaults&) = delete;

  void set(DiskFault fault, std::chrono::milliseconds delay = {});
  // The words of a command, with the library loaded into it.
  [[nodiscard]] std::vector<std::string> loaded_into(const std::vector<std::string>& words) const;

 private:
  const std::string library_;
  const std::string control_path_;
  const std::string image_;
  DiskFaultControl* control_ = nullptr;
};

}  // namespace pollux::chaos
