#include "vmm/devices/virtio/virtio_block.h"

#include <algorithm>
#include <cstring>

#include "base/error.h"
#include "vmm/block/image.h"
#include "vmm/guest/abi.h"

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

enum class VirtioBlock::Status : std::uint8_t {
  kOk = 0,
  kIoError = 1,
  kUnsupported = 2,
  kUncertain = guest_abi::kBlockUncertain,
};

bool is_block_status(std::uint8_t status) { return status <= 2 || status == guest_abi::kBlockUncertain; }

// Bytes of the disk to discard or to zero.
struct VirtioBlock::Range {
  std::uint64_t offset = 0;
  std::uint64_t length = 0;
  bool deallocate = true;
};

// A checked request. All that performing it needs is here.
struct VirtioBlock::Request {
  std::uint32_t type = 0;
  std::uint64_t sector = 0;
  std::uint64_t out_bytes = 0;  // readable, behind the header
  std::uint64_t in_bytes = 0;   // writable, before the status
  std::vector<Range> ranges;
  bool write_through = false;
  std::optional<Status> decided;  // without the gate
  Bytes data;                     // to write, or read
};

// A deferred request. The executor's thread performs it, then says so; from then on it does not change.
struct VirtioBlock::Job {
  Request request;
  bool submitted = false;  // or restored as performed
  Status status = Status::kIoError;
  std::atomic<bool> performed = false;
};

VirtioBlock::VirtioBlock(DiskIndex index, const DiskConfig& config, OutputGate& output, BlockExecutor* executor)
    : index_(index), disk_(config), output_(output), executor_(executor) {
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
  complete_delivered();
  for (unsigned i = 0; i < kRequestsPerServe; ++i) {
    const bool full = outstanding_.size() >= kMaxOutstanding || held_bytes_ >= kMaxOutstandingBytes;
    if (!transport().live(kQueue) || full) return false;
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
  if (executor_ != nullptr) return defer(chain, std::move(request));

  const std::uint64_t generation = generation_;
  in_gate_ = chain.head;
  Status status = Status::kIoError;
  transport().unlocked([&] { status = perform(request); });
  // The driver has taken its memory back, or may no longer be spoken to.
  if (generation == generation_ && transport().live(kQueue)) {
    in_gate_.reset();
    complete(chain, request, status);
  }
  bounce_ = std::move(request.data);
}

// --- Deferred requests ---

void VirtioBlock::defer(const Chain& chain, Request request) {
  auto job = std::make_shared<Job>();
  job->request = std::move(request);
  const auto held_bytes = static_cast<std::uint32_t>(job->request.data.size());
  outstanding_.push_back({.head = chain.head, .job = job, .held_bytes = held_bytes});
  held_bytes_ += held_bytes;
  submit(std::move(job));
}

void VirtioBlock::submit(std::shared_ptr<Job> job) {
  job->submitted = true;
  executor_->submit([this, job = std::move(job)] {
    job->status = perform(job->request);
    job->performed.store(true, std::memory_order_release);
  });
}

std::vector<BlockCompletion> VirtioBlock::performed() const {
  std::vector<BlockCompletion> completions;
  transport().locked([&] {
    for (const Outstanding& request : outstanding_) {
      if (!request.job->performed.load(std::memory_order_acquire)) break;
      const Status status = request.uncertain ? Status::kUncertain : request.job->status;
      completions.push_back({request.head, static_cast<std::uint8_t>(status)});
    }
  });
  return completions;
}

VirtioBlock::Completed VirtioBlock::complete(const BlockCompletion& completion) {
  const auto status = static_cast<Status>(completion.status);
  Completed result = Completed::kNotOutstanding;
  transport().locked([&] {
    const auto found = std::find_if(outstanding_.begin(), outstanding_.end(),
                                    [&](const Outstanding& request) { return request.head == completion.head; });
    if (found == outstanding_.end()) return;
    POLLUX_ASSERT(found->job->performed.load(std::memory_order_acquire));
    result = status == Status::kOk && found->job->status != Status::kOk ? Completed::kFailedHere : Completed::kYes;
    held_bytes_ -= found->held_bytes;
    delivered_.push_back({found->head, std::move(found->job), status});
    outstanding_.erase(found);
  });
  if (result != Completed::kNotOutstanding) transport().notify(kQueue);
  return result;
}

// The chain is walked again, as a restored device must; the driver may have changed it meanwhile, which harms only itself.
void VirtioBlock::complete_delivered() {
  while (!delivered_.empty()) {
    const Delivered delivered = std::move(delivered_.front());
    delivered_.pop_front();
    const Chain chain = transport().queue(kQueue).chain_at(delivered.head);
    if (chain.writable_bytes == 0) throw DriverError("block request without a status byte");
    Request& request = delivered.job->request;
    request.in_bytes = chain.writable_bytes - 1;
    request.data.resize(std::min<std::uint64_t>(request.data.size(), request.in_bytes));
    complete(chain, request, delivered.status);
  }
}

void VirtioBlock::make_uncertain() {
  transport().locked([&] {
    for (Outstanding& request : outstanding_) request.uncertain = true;
  });
}

std::size_t VirtioBlock::outstanding() const {
  std::size_t count = 0;
  transport().locked([&] { count = outstanding_.size(); });
  return count;
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
  request.data = std::move(bounce_);
  if (request.type == kTypeIn) request.data.resize(request.in_bytes);
  if (request.type == kTypeOut) {
    request.data.resize(request.out_bytes);
    copy_from_guest(transport().memory(), chain.readable, sizeof header, request.data);
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

VirtioBlock::Status VirtioBlock::perform(Request& request) const {
  const std::uint64_t offset = request.sector * kSectorSize;
  bool ok = true;
  switch (request.type) {
    case kTypeIn: ok = output_.read(index_, offset, request.data); break;
    case kTypeOut: ok = output_.write(index_, offset, request.data); break;
    case kTypeFlush: ok = output_.flush(index_); break;
    default:
      for (const Range& range : request.ranges) {
        ok = ok && (range.deallocate ? output_.discard(index_, range.offset, range.length)
                                     : write_zeroes(range, request.data));
      }
  }
  // 5.2.6.2: to a driver that does not flush, a completed write is a stable one.
  const bool changes = request.type != kTypeIn && request.type != kTypeFlush;
  if (ok && changes && request.write_through) ok = output_.flush(index_);
  return ok ? Status::kOk : Status::kIoError;
}

// 5.2.6.2: without unmap the range may not be deallocated.
bool VirtioBlock::write_zeroes(const Range& range, Bytes& buffer) const {
  buffer.assign(range.length, std::byte{0});
  return output_.write(index_, range.offset, buffer);
}

void VirtioBlock::complete(const Chain& chain, const Request& request, Status status) {
  GuestMemory& memory = transport().memory();
  std::uint64_t data = 0;
  if (status == Status::kOk && request.type == kTypeIn) {
    data = copy_to_guest(memory, chain.writable, 0, request.data);
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
  outstanding_.clear();
  held_bytes_ = 0;
  delivered_.clear();
}

// --- Saved state ---

void VirtioBlock::save(schema::VirtioDeviceState::Function::Builder state) const {
  const auto count = static_cast<unsigned>(reissue_.size() + (in_gate_ ? 1 : 0) + outstanding_.size());
  auto outstanding = state.initBlock().initOutstanding(count);
  unsigned i = 0;
  if (in_gate_) outstanding.set(i++, *in_gate_);
  for (const std::uint16_t head : reissue_) outstanding.set(i++, head);
  for (const Outstanding& request : outstanding_) outstanding.set(i++, request.head);
}

void VirtioBlock::restore(schema::VirtioDeviceState::Function::Reader state) {
  if (!state.isBlock()) throw Error("restore disk: state of another device");
  const auto outstanding = state.getBlock().getOutstanding();
  if (outstanding.size() > kMaxOutstanding) throw Error("restore disk: too many outstanding requests");
  const QueueRegisters& queue = transport().queue(kQueue).registers();
  reset();
  for (const std::uint16_t head : outstanding) {
    if (!queue.ready || head >= queue.size) throw Error("restore disk: impossible outstanding request");
    if (executor_ == nullptr) {
      reissue_.push_back(head);
    } else {
      outstanding_.push_back({.head = head, .job = std::make_shared<Job>()});
    }
  }
}

void VirtioBlock::settle() {
  transport().locked([&] {
    for (Outstanding& request : outstanding_) request.settled = request.job->performed.load(std::memory_order_acquire);
  });
}

void VirtioBlock::save_results(capnp::List<schema::BlockResult>::Builder results) const {
  POLLUX_ASSERT(results.size() == outstanding_.size());
  for (unsigned i = 0; i < results.size(); ++i) {
    const Outstanding& request = outstanding_[i];
    const bool performed = request.settled;
    results[i].setPerformed(performed);
    results[i].setHeldBytes(request.held_bytes);
    const Status status = request.uncertain ? Status::kUncertain : performed ? request.job->status : Status::kOk;
    results[i].setStatus(static_cast<std::uint8_t>(status));
    if (!performed || request.job->request.type != kTypeIn || status != Status::kOk) continue;
    const Bytes& data = request.job->request.data;
    results[i].setRead({reinterpret_cast<const capnp::byte*>(data.data()), data.size()});
  }
}

void VirtioBlock::restore_results(capnp::List<schema::BlockResult>::Reader results) {
  if (results.size() != outstanding_.size()) throw Error("restore disk: results of other requests");
  for (unsigned i = 0; i < results.size(); ++i) {
    Job& job = *outstanding_[i].job;
    const auto read = results[i].getRead();
    if (!is_block_status(results[i].getStatus())) throw Error("restore disk: unknown status");
    const std::uint32_t held_bytes = results[i].getHeldBytes();
    if (read.size() > kMaxRequestBytes || held_bytes > kMaxRequestBytes) throw Error("restore disk: too much data");
    outstanding_[i].held_bytes = held_bytes;
    held_bytes_ += held_bytes;
    job.status = static_cast<Status>(results[i].getStatus());
    outstanding_[i].uncertain = job.status == Status::kUncertain;
    if (!results[i].getPerformed()) continue;
    if (read.size() > 0) {
      job.request.type = kTypeIn;
      const auto* data = reinterpret_cast<const std::byte*>(read.begin());
      job.request.data.assign(data, data + read.size());
    } else {
      job.request.type = kTypeFlush;  // nothing to copy
    }
    job.submitted = true;
    job.performed.store(true, std::memory_order_release);
    outstanding_[i].settled = true;
  }
}

void VirtioBlock::reissue_restored() {
  transport().locked([&] {
    for (const Outstanding& outstanding : outstanding_) {
      if (outstanding.job->submitted) continue;
      Job& job = *outstanding.job;
      try {
        parse(transport().queue(kQueue).chain_at(outstanding.head), job.request);
      } catch (const DriverError&) {
        job.request.decided = Status::kIoError;  // it changed what it had handed over
      }
      if (!job.request.decided) {
        submit(outstanding.job);
        continue;
      }
      job.submitted = true;
      job.status = *job.request.decided;
      job.performed.store(true, std::memory_order_release);
    }
  });
}

}  // namespace pollux::vmm
