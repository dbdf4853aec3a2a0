#include "vmm/block/image.h"

#include <fcntl.h>
#include <linux/fs.h>
#include <spdlog/spdlog.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>

#include "base/error.h"

namespace pollux::vmm {
namespace {

constexpr std::size_t kZeroChunk = std::size_t{64} * 1024;

UsageError refuse(const std::string& path, const std::string& why) {
  return UsageError("disk image " + path + ": " + why);
}

Fd open_image(const std::string& path, bool read_only, bool block_device) {
  // O_EXCL on a block device: refused while the host has it mounted or in a volume group.
  const int exclusive = block_device && !read_only ? O_EXCL : 0;
  Fd fd(::open(path.c_str(), (read_only ? O_RDONLY : O_RDWR) | O_CLOEXEC | exclusive));
  if (!fd) throw refuse(path, std::strerror(errno));
  // flock, as udev respects it: a device locked by us is not probed while the guest writes it.
  if (!read_only && ::flock(fd.get(), LOCK_EX | LOCK_NB) != 0) {
    throw refuse(path, errno == EWOULDBLOCK ? "in use by another process" : std::strerror(errno));
  }
  return fd;
}

}  // namespace

Image::Image(const std::string& path, bool read_only) : path_(path), read_only_(read_only) {
  struct stat status {};
  // Looked at before opening: opening a FIFO would wait for its other end.
  if (::stat(path.c_str(), &status) != 0) throw refuse(path, std::strerror(errno));
  const bool block_device = S_ISBLK(status.st_mode);
  if (!block_device && !S_ISREG(status.st_mode)) throw refuse(path, "not a regular file or block device");
  fd_ = open_image(path, read_only, block_device);
  if (block_device) {
    if (::ioctl(fd_.get(), BLKGETSIZE64, &size_) != 0) throw refuse(path, std::strerror(errno));
  } else {
    if (::fstat(fd_.get(), &status) != 0) throw refuse(path, std::strerror(errno));
    size_ = static_cast<std::uint64_t>(status.st_size);
  }
  if (size_ == 0) throw refuse(path, "empty");
  if (size_ % kSectorSize != 0) throw refuse(path, "its size is not a multiple of 512 bytes");
}

bool Image::read(std::uint64_t offset, MutableByteView into) {
  while (!into.empty()) {
    const auto got = ::pread(fd_.get(), into.data(), into.size(), static_cast<off_t>(offset));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return failed(Operation::kRead, errno);
    if (got == 0) return failed(Operation::kRead, ENODATA);  // someone cut the file
    into = into.subspan(static_cast<std::size_t>(got));
    offset += static_cast<std::uint64_t>(got);
  }
  return true;
}

bool Image::write(std::uint64_t offset, ByteView from) {
  if (read_only_) return failed(Operation::kWrite, EROFS);
  while (!from.empty()) {
    const auto put = ::pwrite(fd_.get(), from.data(), from.size(), static_cast<off_t>(offset));
    if (put < 0 && errno == EINTR) continue;
    if (put < 0) return failed(Operation::kWrite, errno);
    from = from.subspan(static_cast<std::size_t>(put));
    offset += static_cast<std::uint64_t>(put);
  }
  return true;
}

// fallocate serves block devices too (since Linux 4.9), and unlike BLKDISCARD it promises zeros and keeps the
// page cache right: PUNCH_HOLE is a discard that zeroes, ZERO_RANGE what BLKZEROOUT does.
bool Image::discard(std::uint64_t offset, std::uint64_t length) {
  if (read_only_) return failed(Operation::kDiscard, EROFS);
  if (length == 0) return true;
  for (const int mode : {FALLOC_FL_PUNCH_HOLE, FALLOC_FL_ZERO_RANGE}) {
    int result = 0;
    do {
      result = ::fallocate(fd_.get(), mode | FALLOC_FL_KEEP_SIZE, static_cast<off_t>(offset),
                           static_cast<off_t>(length));
    } while (result != 0 && errno == EINTR);
    if (result == 0) return true;
    // Not with this file system, or not at this alignment (a device with 4096-byte sectors): the next way.
    if (errno != EOPNOTSUPP && errno != EINVAL && errno != ENOSYS) return failed(Operation::kDiscard, errno);
  }
  return write_zeros(offset, length);
}

bool Image::write_zeros(std::uint64_t offset, std::uint64_t length) {
  static constexpr std::array<std::byte, kZeroChunk> kZeros{};
  while (length > 0) {
    const auto part = std::min<std::uint64_t>(length, kZeros.size());
    if (!write(offset, ByteView(kZeros).first(part))) return false;
    offset += part;
    length -= part;
  }
  return true;
}

bool Image::sync() {
  if (::fdatasync(fd_.get()) != 0) return failed(Operation::kSync, errno);
  return true;
}

bool Image::failed(Operation operation, int error_number) {
  static constexpr std::array kNames = {"read", "write", "discard", "sync"};
  const auto which = static_cast<unsigned>(operation);
  if ((logged_.fetch_or(1u << which) & (1u << which)) == 0) {
    spdlog::error("disk image {}: {} failed: {}", path_, kNames[which], std::strerror(error_number));
  }
  return false;
}

}  // namespace pollux::vmm
