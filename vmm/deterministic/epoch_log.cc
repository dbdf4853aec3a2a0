#include "vmm/deterministic/epoch_log.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>

#include "base/error.h"
#include "vmm/deterministic/byte_coding.h"

namespace pollux::vmm {
namespace {

constexpr std::array<char, 8> kMagic{'P', 'O', 'L', 'L', 'U', 'X', 'E', 'L'};
// Raised whenever older software must not read what newer wrote.
constexpr std::uint32_t kVersion = 1;
constexpr std::size_t kPreambleBytes = kMagic.size() + sizeof kVersion;

constexpr std::uint32_t kOriginFrame = 1;
constexpr std::uint32_t kEpochFrame = 2;
constexpr std::uint32_t kEndFrame = 3;

constexpr std::size_t kMaxText = std::size_t{64} * 1024;
constexpr std::size_t kMaxOriginBytes = std::size_t{2} << 20;
constexpr std::size_t kBufferBytes = std::size_t{256} * 1024;
constexpr std::chrono::milliseconds kLongestUnwritten{200};
constexpr std::size_t kDigestChunk = std::size_t{1} << 20;

struct FrameHeader {
  std::uint32_t type = 0;
  std::uint32_t length = 0;
  std::uint64_t payload_sum = 0;
  std::uint64_t header_sum = 0;  // of what is before it
};
static_assert(sizeof(FrameHeader) == 24);

// Half of the 128 bits do for what only accidents damage.
std::uint64_t checksum(ByteView bytes) { return digest_of(bytes).low; }
std::uint64_t own_sum(const FrameHeader& header) {
  return checksum(bytes_of(header).first(offsetof(FrameHeader, header_sum)));
}

// --- The origin ---

void put_text(ByteWriter& writer, ByteView bytes) {
  writer.put(static_cast<std::uint32_t>(bytes.size()));
  writer.put_bytes(bytes);
}
void put_text(ByteWriter& writer, const std::string& text) { put_text(writer, std::as_bytes(std::span(text))); }

ByteView take_bytes(ByteReader& reader) { return reader.take_bytes(reader.take_count(kMaxText, 1)); }
std::string take_text(ByteReader& reader) {
  const ByteView bytes = take_bytes(reader);
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

void put_file(ByteWriter& writer, const LoggedFile& file) {
  put_text(writer, file.path);
  writer.put(file.content.low);
  writer.put(file.content.high);
}
LoggedFile take_file(ByteReader& reader) {
  LoggedFile file;
  file.path = take_text(reader);
  file.content.low = reader.take<std::uint64_t>();
  file.content.high = reader.take<std::uint64_t>();
  return file;
}

Bytes encode(const LogOrigin& origin) {
  ByteWriter writer;
  put_text(writer, vmm::encode(origin.config));
  put_file(writer, origin.kernel);
  put_text(writer, origin.command_line);
  for (const LoggedFile& disk : origin.disks) put_file(writer, disk);
  return writer.take();
}

LogOrigin decode_origin(ByteView bytes) {
  ByteReader reader("its origin", bytes);
  LogOrigin origin;
  origin.config = decode_machine_config(take_bytes(reader));
  reader.require(origin.config.profile == MachineProfile::kDeterministic, "not of a deterministic machine");
  origin.kernel = take_file(reader);
  origin.command_line = take_text(reader);
  for (std::size_t i = 0; i < origin.config.disks.size(); ++i) origin.disks.push_back(take_file(reader));
  reader.require_end();
  return origin;
}

// Number, inputs, digest of an epoch.
std::uint64_t epoch_limit(const MachineConfig& config) {
  return 64 + kMaxEpochInputsBytes + 64 + (config.memory_bytes >> kPageShift) * 24;
}

}  // namespace

// Of the digests of its pieces: the whole need not be in memory.
Digest digest_of_image(Image& image) {
  Bytes chunk(kDigestChunk);
  std::vector<Digest> digests;
  for (std::uint64_t at = 0; at < image.size(); at += kDigestChunk) {
    const MutableByteView part = MutableByteView(chunk).first(std::min<std::uint64_t>(kDigestChunk, image.size() - at));
    if (!image.read(at, part)) throw Error("disk image " + image.path() + ": cannot be read");
    digests.push_back(digest_of(part));
  }
  return digest_of(std::as_bytes(std::span(digests)));
}

Digest digest_of_file(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  const std::string content{std::istreambuf_iterator<char>(file), {}};
  if (!file) throw errno_error("read", path);
  return digest_of(std::as_bytes(std::span(content)));
}

// --- Writing ---

EpochLogWriter::EpochLogWriter(const std::string& path, const LogOrigin& origin) : path_(path) {
  fd_ = Fd(::open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666));
  if (!fd_) throw UsageError(path + ": " + std::strerror(errno));
  const auto magic = std::as_bytes(std::span(kMagic));
  buffer_.assign(magic.begin(), magic.end());
  const auto version = bytes_of(kVersion);
  buffer_.insert(buffer_.end(), version.begin(), version.end());
  put_frame(kOriginFrame, encode(origin));
  flush();
}

void EpochLogWriter::append(const LoggedEpoch& epoch) {
  const Bytes inputs = vmm::encode(epoch.inputs);
  ByteWriter writer;
  writer.put(epoch.number.value);
  writer.put(static_cast<std::uint32_t>(inputs.size()));
  writer.put_bytes(inputs);
  writer.put_bytes(vmm::encode(epoch.digest));
  put_frame(kEpochFrame, writer.take());
  const bool late = std::chrono::steady_clock::now() - flushed_ > kLongestUnwritten;
  if (late || buffer_.size() >= kBufferBytes) flush();
}

void EpochLogWriter::finish(LogEnd how) {
  put_frame(kEndFrame, bytes_of(how));
  flush();
}

void EpochLogWriter::put_frame(std::uint32_t type, ByteView payload) {
  FrameHeader header{type, static_cast<std::uint32_t>(payload.size()), checksum(payload), 0};
  header.header_sum = own_sum(header);
  const auto bytes = bytes_of(header);
  buffer_.insert(buffer_.end(), bytes.begin(), bytes.end());
  buffer_.insert(buffer_.end(), payload.begin(), payload.end());
}

void EpochLogWriter::flush() {
  for (ByteView left = buffer_; !left.empty();) {
    const auto put = ::write(fd_.get(), left.data(), left.size());
    if (put < 0 && errno == EINTR) continue;
    if (put < 0) throw errno_error("write", path_);
    left = left.subspan(static_cast<std::size_t>(put));
  }
  buffer_.clear();
  flushed_ = std::chrono::steady_clock::now();
}

// --- Reading ---

EpochLogReader::EpochLogReader(const std::string& path) : path_(path), file_(path, std::ios::binary) {
  if (!file_) throw UsageError(path + ": " + std::strerror(errno));
  std::array<std::byte, kPreambleBytes> preamble{};
  if (read(preamble) != preamble.size() || std::memcmp(preamble.data(), kMagic.data(), kMagic.size()) != 0) {
    refuse(0, "not a log of epochs");
  }
  std::uint32_t version = 0;
  std::memcpy(&version, preamble.data() + kMagic.size(), sizeof version);
  if (version != kVersion) refuse(kMagic.size(), fmt::format("version {}, and this program reads {}", version, kVersion));
  offset_ = kPreambleBytes;
  const auto frame = read_frame(kMaxOriginBytes);
  if (!frame) refuse(offset_, "the log ends before it says what was recorded");
  if (frame->type != kOriginFrame) refuse(kPreambleBytes, "the log does not begin with its origin");
  try {
    origin_ = decode_origin(frame->payload);
  } catch (const Error& error) {
    refuse(kPreambleBytes, error.what());
  }
}

std::optional<LoggedEpoch> EpochLogReader::next() {
  const std::uint64_t start = offset_;
  const auto frame = read_frame(epoch_limit(origin_.config));
  if (!frame) return std::nullopt;
  if (frame->type == kEndFrame) {
    const auto how = frame->payload.size() == 1 ? static_cast<LogEnd>(frame->payload.front()) : LogEnd::kCut;
    if (how != LogEnd::kMachineEnded && how != LogEnd::kStopped) refuse(start, "an end of no known kind");
    if (file_.peek() != std::ifstream::traits_type::eof()) refuse(offset_, "bytes behind the end");
    end_ = how;
    return std::nullopt;
  }
  if (frame->type != kEpochFrame) refuse(start, fmt::format("a frame of unknown type {}", frame->type));
  try {
    LoggedEpoch epoch = decode(*frame);
    ++next_.value;
    return epoch;
  } catch (const Error& error) {
    refuse(start, error.what());
  }
}

LoggedEpoch EpochLogReader::decode(const Frame& frame) const {
  ByteReader reader("epoch", frame.payload);
  LoggedEpoch epoch;
  epoch.number = {reader.take<std::uint64_t>()};
  reader.require(epoch.number == next_, "not the one that follows");
  const std::size_t inputs = reader.take_count(kMaxEpochInputsBytes, 1);
  epoch.inputs = decode_epoch_inputs(reader.take_bytes(inputs));
  epoch.digest = decode_epoch_digest(reader.take_bytes(reader.left()));
  return epoch;
}

// Nothing: the file ends, before or in the midst of the frame.
std::optional<EpochLogReader::Frame> EpochLogReader::read_frame(std::uint64_t limit) {
  FrameHeader header;
  if (read(mutable_bytes_of(header)) != sizeof header) return std::nullopt;
  if (header.header_sum != own_sum(header) || header.length > limit) refuse(offset_, "damaged");
  Frame frame{header.type, Bytes(header.length)};
  if (read(frame.payload) != header.length) return std::nullopt;
  if (checksum(frame.payload) != header.payload_sum) refuse(offset_, "damaged");
  offset_ += sizeof header + header.length;
  return frame;
}

std::size_t EpochLogReader::read(MutableByteView into) {
  file_.read(reinterpret_cast<char*>(into.data()), static_cast<std::streamsize>(into.size()));
  if (file_.bad()) throw errno_error("read", path_);
  return static_cast<std::size_t>(file_.gcount());
}

void EpochLogReader::refuse(std::uint64_t offset, const std::string& why) const {
  throw UsageError(fmt::format("{}: at byte {}: {}", path_, offset, why));
}

}  // namespace pollux::vmm
