// libpollux-disk-faults.so (disk_faults.h): stands before the C library's pread, pwrite, fallocate and fdatasync.
#include <dlfcn.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>

#include "chaos/disk_faults.h"

namespace {

using pollux::chaos::DiskFault;
using pollux::chaos::DiskFaultControl;

// Null: this process is not to be harmed.
const DiskFaultControl* map_control() {
  const char* path = std::getenv(pollux::chaos::kDiskFaultControlVariable);
  const int file = path != nullptr ? ::open(path, O_RDONLY | O_CLOEXEC) : -1;
  if (file < 0) return nullptr;
  void* mapped = ::mmap(nullptr, sizeof(DiskFaultControl), PROT_READ, MAP_SHARED, file, 0);
  ::close(file);
  return mapped == MAP_FAILED ? nullptr : static_cast<const DiskFaultControl*>(mapped);
}

bool is_image(int fd) {
  const char* path = std::getenv(pollux::chaos::kDiskFaultImageVariable);
  struct stat image {};
  struct stat file {};
  return path != nullptr && ::stat(path, &image) == 0 && ::fstat(fd, &file) == 0 && image.st_dev == file.st_dev &&
         image.st_ino == file.st_ino;
}

const DiskFaultControl* control() {
  static const DiskFaultControl* const mapped = map_control();
  return mapped;
}

// On this file, now.
DiskFault fault_of(int fd) {
  if (control() == nullptr) return DiskFault::kNone;
  const auto fault = static_cast<DiskFault>(control()->fault.load());
  if (fault == DiskFault::kNone || !is_image(fd)) return DiskFault::kNone;
  return fault;
}

// Of a call that needs room. 0: it is carried out.
int refusal(int fd) {
  switch (fault_of(fd)) {
    case DiskFault::kError: return EIO;
    case DiskFault::kFull: return ENOSPC;
    default: return 0;
  }
}

void sleep_for(std::uint32_t milliseconds) {
  const timespec time{static_cast<time_t>(milliseconds / 1000), static_cast<long>(milliseconds % 1000) * 1'000'000};
  ::nanosleep(&time, nullptr);
}

template <class Function>
Function next(const char* name) {
  return reinterpret_cast<Function>(::dlsym(RTLD_NEXT, name));
}

}  // namespace

extern "C" {

ssize_t pread(int fd, void* data, size_t size, off_t offset) {
  static const auto real = next<ssize_t (*)(int, void*, size_t, off_t)>("pread");
  const DiskFault fault = fault_of(fd);
  if (fault == DiskFault::kError || fault == DiskFault::kReadError) {
    errno = EIO;
    return -1;
  }
  return real(fd, data, size, offset);
}

ssize_t pread64(int fd, void* data, size_t size, off_t offset) { return pread(fd, data, size, offset); }

ssize_t pwrite(int fd, const void* data, size_t size, off_t offset) {
  static const auto real = next<ssize_t (*)(int, const void*, size_t, off_t)>("pwrite");
  if (const int error = refusal(fd)) {
    errno = error;
    return -1;
  }
  return real(fd, data, size, offset);
}

ssize_t pwrite64(int fd, const void* data, size_t size, off_t offset) { return pwrite(fd, data, size, offset); }

int fallocate(int fd, int mode, off_t offset, off_t length) {
  static const auto real = next<int (*)(int, int, off_t, off_t)>("fallocate");
  if (const int error = refusal(fd)) {
    errno = error;
    return -1;
  }
  return real(fd, mode, offset, length);
}

int fallocate64(int fd, int mode, off_t offset, off_t length) { return fallocate(fd, mode, offset, length); }

int fdatasync(int fd) {
  static const auto real = next<int (*)(int)>("fdatasync");
  const DiskFault fault = fault_of(fd);
  if (fault == DiskFault::kError) {
    errno = EIO;
    return -1;
  }
  if (fault == DiskFault::kSlow) sleep_for(control()->delay_ms);
  return real(fd);
}

}  // extern "C"
