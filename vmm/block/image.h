// A raw disk image: a regular file or a block device on the host.
#pragma once

#include <atomic>
#include <cstdint>
#include <string>

#include "base/bytes.h"
#include "base/fd.h"

namespace pollux::vmm {

inline constexpr std::uint64_t kSectorSize = 512;  // virtio-blk's unit (virtio 1.2, 5.2.4)

// Thread safe. Offsets and lengths are bytes within size(). Virtual where a disk can be slow or fail, so that a test
// can have one that is or does.
class Image {
 public:
  // Throws UsageError naming the path: missing, not a file or block device, empty, or not a multiple of 512
  // bytes, or in use by another process (an exclusive lock is taken unless read-only) or mounted.
  Image(const std::string& path, bool read_only);
  virtual ~Image() = default;
  Image(const Image&) = delete;
  Image& operator=(const Image&) = delete;

  [[nodiscard]] const std::string& path() const { return path_; }
  [[nodiscard]] std::uint64_t size() const { return size_; }
  [[nodiscard]] bool read_only() const { return read_only_; }

  // False on an I/O error (logged here, once per kind).
  [[nodiscard]] virtual bool read(std::uint64_t offset, MutableByteView into);
  [[nodiscard]] virtual bool write(std::uint64_t offset, ByteView from);
  // Deallocates where the host can; the range reads as zeros in any case.
  [[nodiscard]] virtual bool discard(std::uint64_t offset, std::uint64_t length);
  // fdatasync: all writes before it are durable.
  [[nodiscard]] virtual bool sync();

 private:
  enum class Operation : unsigned { kRead, kWrite, kDiscard, kSync };
  [[nodiscard]] bool failed(Operation operation, int error_number);
  [[nodiscard]] bool write_zeros(std::uint64_t offset, std::uint64_t length);

  std::string path_;
  Fd fd_;
  std::uint64_t size_ = 0;
  bool read_only_;
  std::atomic<unsigned> logged_ = 0;  // operations whose first failure was logged, one bit each
};

}  // namespace pollux::vmm
