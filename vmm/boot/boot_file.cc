#include "vmm/boot/boot_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "base/error.h"
#include "base/fd.h"

namespace pollux::vmm::boot {
namespace {

[[noreturn]] void refuse(const std::string& option, const std::string& path, const std::string& why) {
  throw UsageError(option + " " + path + ": " + why);
}

}  // namespace

Bytes read_boot_file(const std::string& option, const std::string& path, std::uint64_t limit) {
  // O_NONBLOCK: a FIFO must not make us wait for its writer.
  const Fd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
  if (!fd) refuse(option, path, std::strerror(errno));
  struct stat status {};
  if (::fstat(fd.get(), &status) < 0) refuse(option, path, std::strerror(errno));
  if (!S_ISREG(status.st_mode)) refuse(option, path, "not a regular file");
  if (status.st_size <= 0) refuse(option, path, "empty");
  if (static_cast<std::uint64_t>(status.st_size) > limit)
    refuse(option, path, "too large for the guest's memory");
  Bytes bytes(static_cast<std::size_t>(status.st_size));
  for (std::size_t done = 0; done < bytes.size();) {
    const auto got = ::read(fd.get(), bytes.data() + done, bytes.size() - done);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) refuse(option, path, std::strerror(errno));
    if (got == 0) refuse(option, path, "became shorter while it was read");
    done += static_cast<std::size_t>(got);
  }
  return bytes;
}

}  // namespace pollux::vmm::boot
