// A file that holds what a deterministic machine started from, and each of its epochs: inputs, and the digest of the
// state it ended in. What is needed to have the same run again.
//
// Format, little endian: the magic "POLLUXEL" and a 32-bit version; then frames, each a header of 24 bytes (type and
// length of the payload, 32 bits each; XXH3-64 of the payload; XXH3-64 of the 16 bytes before) and its payload. The
// first frame is the origin, the last one says how the recording ended. A log without that last frame was cut off.
#pragma once

#include <chrono>
#include <fstream>
#include <optional>
#include <string>
#include <vector>

#include "base/fd.h"
#include "vmm/block/image.h"
#include "vmm/deterministic/digest.h"
#include "vmm/deterministic/epoch_inputs.h"
#include "vmm/machine/machine_config.h"

namespace pollux::vmm {

struct LoggedFile {
  std::string path;  // when it was recorded
  Digest content;
  bool operator==(const LoggedFile&) const = default;
};

struct LogOrigin {
  MachineConfig config;
  LoggedFile kernel;
  std::string command_line;
  std::vector<LoggedFile> disks;  // as they were before the first epoch
  bool operator==(const LogOrigin&) const = default;
};

struct LoggedEpoch {
  EpochNumber number;
  EpochInputs inputs;
  EpochDigest digest;
};

enum class LogEnd : std::uint8_t {
  kMachineEnded = 0,
  kStopped = 1,  // the recording was, the machine could have gone on
  kCut = 2,      // never written: the recorder was killed, or the file was cut
};

// Throws Error when it cannot be read.
[[nodiscard]] Digest digest_of_file(const std::string& path);
[[nodiscard]] Digest digest_of_image(Image& image);

// Throws Error when the file cannot be written.
class EpochLogWriter {
 public:
  // A file of that name must not be there: throws UsageError.
  EpochLogWriter(const std::string& path, const LogOrigin& origin);

  // Written at the latest a fraction of a second after, when another is appended.
  void append(const LoggedEpoch& epoch);
  void finish(LogEnd how);

 private:
  void put_frame(std::uint32_t type, ByteView payload);
  void flush();

  std::string path_;
  Fd fd_;
  Bytes buffer_;
  std::chrono::steady_clock::time_point flushed_;
};

// Everything is checked when it is read: throws UsageError naming the byte at which something is wrong.
class EpochLogReader {
 public:
  explicit EpochLogReader(const std::string& path);

  [[nodiscard]] const LogOrigin& origin() const { return origin_; }
  // In order, from epoch 0 on. Nothing: see end().
  [[nodiscard]] std::optional<LoggedEpoch> next();
  [[nodiscard]] LogEnd end() const { return end_; }
  // Where the next frame begins.
  [[nodiscard]] std::uint64_t offset() const { return offset_; }

 private:
  struct Frame {
    std::uint32_t type = 0;
    Bytes payload;
  };
  [[noreturn]] void refuse(std::uint64_t offset, const std::string& why) const;
  [[nodiscard]] std::optional<Frame> read_frame(std::uint64_t limit);
  [[nodiscard]] std::size_t read(MutableByteView into);
  [[nodiscard]] LoggedEpoch decode(const Frame& frame) const;

  std::string path_;
  std::ifstream file_;
  std::uint64_t offset_ = 0;
  LogOrigin origin_;
  EpochNumber next_;
  LogEnd end_ = LogEnd::kCut;
};

}  // namespace pollux::vmm
