#include "vmm/devices/virtio/virtio_block.h"

#include <algorithm>
#include <cstring>

#include "base/error.h"
#include "vmm/block/image.h"

namespace pollux::vmm {
namespace {

constexpr QueueIndex kQueue{0};

// 5.2.3
constexpr std::uint64_t kSizeMax = feature_bit(1);
constexpr std::uint64_t kSegMax = feature_bit(2);
constexpr std::uint64_t kReadOnly = feature_bit(5);
constexpr std::uint64_t kBlkSize = feature_bit(6);
constexpr std::uint64_t kFlush = feature_bit(9);
constexpr std::uint64_t kDiscard = feature_bit(13);
constexpr std::uint64_t kWriteZeroes = feature_bit(14);

// 5.2.6
enum RequestType : std::uint32_t {
  kTypeIn = 0,
  kTypeOut = 1,
  kTypeFlush = 4,
  kTypeGetId = 8,
  kTypeDiscard = 11,
  kTypeWriteZeroes = 13,
};
constexpr std::uint32_t kUnmap = 1;

struct RequestHeader {
  std::uint32_t type;
  std::uint32_t reserved;
  std::uint64_t sector;
};
struct RangeEntry {  // struct virtio_blk_discard_write_zeroes
  std::uint64_t sector;
  std::uint32_t sectors;
  std::uint32_t flags;
};

// Offsets of struct virtio_blk_config (5.2.4).
template <class T>
void put(MutableByteView config, std::size_t offset, T value) {
  std::memcpy(config.data() + offset, &value, sizeof value);
}

}  // namespace

enum class VirtioBlock::Status : std::uint8_t { kOk = 0, kIoError = 1, kUnsupported = 2 };

// Bytes of the disk to discard or to zero.
struct VirtioBlock::Range {
  std::uint64_t offset = 0;
  std::uint64_t length = 0;
  bool deallocate = true;
};

// A checked request. What an operation without the lock needs is here and in bounce_.
struct VirtioBlock::Request {
  std::uint32_t type = 0;
  std::uint64_t sector = 0;
  std::uint64_t out_bytes = 0;  // readable, behind the header
  std::uint64_t in_bytes = 0;   // writable, before the status
  std::vector<Range> ranges;
  bool write_through = false;
  std::optional<Status> decided;  // without the gate
};

VirtioBlock::VirtioBlock(DiskIndex index, const DiskConfig& config, OutputGate& output)
    : index_(index), disk_(config), output_(output) {
  constexpr auto kDiscardSectors = static_cast<std::uint32_t>(kMaxDiscardBytes / kSectorSize);
  put<std::uint64_t>(config_space_, 0, disk_.size / kSectorSize);
  put<std::uint32_t>(config_space_, 8, kMaxSegmentBytes);
  put<std::uint32_t>(config_space_, 12, kMaxSegments);
  put<std::uint32_t>(config_space_, 20, kSectorSize);  // blk_size
  put<std::uint16_t>(config_space_, 34, 1);            // num_queues
  put<std::uint32_t>(config_space_, 36, kDiscardSectors);
  put<std::uint32_t>(config_space_, 40, kMaxDiscardRanges);
  put<std::uint32_t>(config_space_, 44, 1);  // discard_sector_alignment
  // Zeroes that may not deallocate are written out: bounded as a write is.
  put<std::uint32_t>(config_space_, 48, kMaxRequestBytes / kSectorSize);
  put<std::uint32_t>(config_space_, 52, kMaxDiscardRanges);
  put<std::uint8_t>(config_space_, 56, 1);  // write_zeroes_may_unmap
}

std::uint64_t VirtioBlock::features() const {
  const std::uint64_t always = kSizeMax | kSegMax | kBlkSize | kFlush;
  return always | (disk_.read_only ? kReadOnly : kDiscard | kWriteZeroes);
}

std::span<const std::uint16_t> VirtioBlock::queue_sizes() const {
  static constexpr std::array kSizes = {kQueueSize};
  return kSizes;
}

bool VirtioBlock::serve(QueueIndex) {
  // A second vCPU's notification, or a new driver's while the old one's request is still in the gate: the
  // call under way goes on with what it finds.
  if (serving_) return false;
  serving_ = true;
  struct Done {
    ~Done() { serving = false; }
    bool& serving;
  } const done{serving_};
  for (unsigned i = 0; i < kRequestsPerServe; ++i) {
    if (!transport().live(kQueue)) return false;
    const auto chain = next_request();
    if (!chain) return false;
    serve_request(*chain);
  }
  return true;
}

std::optional<Chain> VirtioBlock::next_request() {
  Queue& queue = transport().queue(kQueue);
  if (reissue_.empty()) return queue.pop();
  const std::uint16_t head = reissue_.front();
  Chain chain = queue.chain_at(head);
  reissue_.pop_front();
  return chain;
}

void VirtioBlock::serve_request(const Chain& chain) {
  Request request;
  parse(chain, request);
  if (request.decided) return complete(chain, request, *request.decided);

  const std::uint64_t generation = generation_;
  in_gate_ = chain.head;
  Status status = Status::kIoError;
  transport().unlocked([&] { status = perform(request); });
  // The driver has taken its memory back, or may no longer be spoken to.
  if (generation != generation_ || !transport().live(kQueue)) return;
  in_gate_.reset();
  complete(chain, request, status);
}

// --- Checking a request (5.2.6); framing is by bytes, not by descriptors (2.7.4) ---

void VirtioBlock::parse(const Chain& chain, Request& request) {
  RequestHeader header{};
  if (chain.readable_bytes < sizeof header) throw DriverError("block request without a whole header");
  if (chain.writable_bytes == 0) throw DriverError("block request without a status byte");
  copy_from_guest(transport().memory(), chain.readable, 0, mutable_bytes_of(header));
  request.type = header.type;
  request.sector = header.sector;
  request.out_bytes = chain.readable_bytes - sizeof header;
  request.in_bytes = chain.writable_bytes - 1;
  request.write_through = !transport().negotiated(kFlush);

  switch (request.type) {
    case kTypeIn:
    case kTypeOut: parse_transfer(request); break;
    case kTypeFlush: break;
    case kTypeGetId: request.decided = Status::kOk; break;
    case kTypeDiscard:
    case kTypeWriteZeroes: parse_ranges(chain, request); break;
    default: request.decided = Status::kUnsupported;
  }
  if (request.decided) return;
  if (request.type == kTypeIn) bounce_.resize(request.in_bytes);
  if (request.type == kTypeOut) {
    bounce_.resize(request.out_bytes);
    copy_from_guest(transport().memory(), chain.readable, sizeof header, bounce_);
  }
}

bool VirtioBlock::within_disk(std::uint64_t sector, std::uint64_t bytes) const {
  return sector <= disk_.size / kSectorSize && bytes <= disk_.size - sector * kSectorSize;
}

void VirtioBlock::parse_transfer(Request& request) const {
  const bool out = request.type == kTypeOut;
  const std::uint64_t bytes = out ? request.out_bytes : request.in_bytes;
  if ((out && disk_.read_only) || bytes % kSectorSize != 0 || bytes > kMaxRequestBytes ||
      !within_disk(request.sector, bytes)) {
    request.decided = Status::kIoError;
  } else if (bytes == 0) {
    request.decided = Status::kOk;
  }
}

void VirtioBlock::parse_ranges(const Chain& chain, Request& request) const {
  const bool discard = request.type == kTypeDiscard;
  if (!transport().negotiated(discard ? kDiscard : kWriteZeroes)) {
    request.decided = Status::kUnsupported;
    return;
  }
  const std::uint64_t count = request.out_bytes / sizeof(RangeEntry);
  if (count == 0 || count > kMaxDiscardRanges || request.out_bytes % sizeof(RangeEntry) != 0) {
    request.decided = Status::kIoError;
    return;
  }
  const std::uint64_t limit = discard ? kMaxDiscardBytes : kMaxRequestBytes;
  for (std::uint64_t i = 0; i < count; ++i) {
    RangeEntry entry{};
    copy_from_guest(transport().memory(), chain.readable, sizeof(RequestHeader) + i * sizeof entry,
                    mutable_bytes_of(entry));
    const std::uint64_t bytes = std::uint64_t{entry.sectors} * kSectorSize;
    if (bytes > limit || !within_disk(entry.sector, bytes)) request.decided = Status::kIoError;
    // 5.2.6.2: unmap must be clear in a discard, and other flags always.
    if (entry.flags & ~(discard ? 0u : kUnmap)) request.decided = Status::kUnsupported;
    if (request.decided) return;
    if (bytes == 0) continue;
    const bool deallocate = discard || (entry.flags & kUnmap) != 0;
    request.ranges.push_back({entry.sector * kSectorSize, bytes, deallocate});
  }
}

// --- Serving it, without the lock: nothing here may touch guest memory or the device ---

VirtioBlock::Status VirtioBlock::perform(const Request& request) {
  const std::uint64_t offset = request.sector * kSectorSize;
  bool ok = true;
  switch (request.type) {
    case kTypeIn: ok = output_.read(index_, offset, bounce_); break;
    case kTypeOut: ok = output_.write(index_, offset, bounce_); break;
    case kTypeFlush: ok = output_.flush(index_); break;
    default:
      for (const Range& range : request.ranges) {
        ok = ok &&
             (range.deallocate ? output_.discard(index_, range.offset, range.length) : write_zeroes(range));
      }
  }
  // 5.2.6.2: to a driver that does not flush, a completed write is a stable one.
  const bool changes = request.type != kTypeIn && request.type != kTypeFlush;
  if (ok && changes && request.write_through) ok = output_.flush(index_);
  return ok ? Status::kOk : Status::kIoError;
}

// 5.2.6.2: without unmap the range may not be deallocated.
bool VirtioBlock::write_zeroes(const Range& range) {
  bounce_.assign(range.length, std::byte{0});
  return output_.write(index_, range.offset, bounce_);
}

void VirtioBlock::complete(const Chain& chain, const Request& request, Status status) {
  GuestMemory& memory = transport().memory();
  std::uint64_t data = 0;
  if (status == Status::kOk && request.type == kTypeIn) {
    data = copy_to_guest(memory, chain.writable, 0, ByteView(bounce_).first(request.in_bytes));
  } else if (request.type == kTypeGetId) {
    std::array<std::byte, kIdBytes> id{};
    const std::string text = "pollux-disk-" + std::to_string(index_.value);
    std::memcpy(id.data(), text.data(), std::min(text.size(), id.size()));
    data =
        copy_to_guest(memory, chain.writable, 0, ByteView(id).first(std::min(request.in_bytes, id.size())));
  }
  copy_to_guest(memory, chain.writable, request.in_bytes, bytes_of(status));
  // 2.7.8.2: the length counts from the first writable byte without a gap; the status is behind the data.
  const std::uint64_t written = data == request.in_bytes ? data + 1 : data;
  transport().queue(kQueue).push_used(chain.head, static_cast<std::uint32_t>(written));
  transport().signal(kQueue);
}

void VirtioBlock::reset() {
  ++generation_;
  in_gate_.reset();
  reissue_.clear();
}

// --- Saved state ---

void VirtioBlock::save(schema::VirtioDeviceState::Function::Builder state) const {
  const auto count = static_cast<unsigned>(reissue_.size() + (in_gate_ ? 1 : 0));
  auto outstanding = state.initBlock().initOutstanding(count);
  unsigned i = 0;
  if (in_gate_) outstanding.set(i++, *in_gate_);
  for (const std::uint16_t head : reissue_) outstanding.set(i++, head);
}

void VirtioBlock::restore(schema::VirtioDeviceState::Function::Reader state) {
  if (!state.isBlock()) throw Error("restore disk: state of another device");
  const auto outstanding = state.getBlock().getOutstanding();
  if (outstanding.size() > kMaxOutstanding) throw Error("restore disk: too many outstanding requests");
  const QueueRegisters& queue = transport().queue(kQueue).registers();
  reset();
  for (const std::uint16_t head : outstanding) {
    if (!queue.ready || head >= queue.size) throw Error("restore disk: impossible outstanding request");
    reissue_.push_back(head);
  }
}

}  // namespace pollux::vmm
