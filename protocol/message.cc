#include "protocol/message.h"

#include <capnp/message.h>
#include <capnp/serialize.h>
#include <kj/exception.h>
#include <sodium.h>

#include <algorithm>
#include <cstring>
#include <utility>

#include "protocol/overloaded.h"
#include "protocol/schema/messages.capnp.h"

namespace pollux::protocol {
namespace {

// What the decoder checks of the peer's message and the encoder of ours.

void require(bool condition, const char* what) {
  if (!condition) throw ProtocolError(std::string("malformed message: ") + what);
}

// Adds up lengths that are bounded one by one, and holds the sum to the body's bound.
class BodySize {
 public:
  void add(std::uint64_t bytes) {
    require(bytes <= kMaxBodyBytes && bytes_ + bytes <= kMaxBodyBytes, "the body is too long");
    bytes_ += bytes;
  }
  [[nodiscard]] std::size_t bytes() const { return bytes_; }

 private:
  std::size_t bytes_ = 0;
};

std::size_t check_runs(const std::vector<PageRun>& runs) {
  require(!runs.empty() && runs.size() <= kMaxRunsPerMessage, "number of page runs");
  BodySize body;
  for (const PageRun& run : runs) {
    require(run.count > 0 && run.count <= kMaxPagesPerRun, "length of a page run");
    require(run.first.value < kPageNumberLimit && run.count <= kPageNumberLimit - run.first.value,
            "page number");
    if (!run.zero) body.add(run.count * kPageSize);
  }
  return body.bytes();
}

void check_epoch(EpochId epoch) { require(epoch.value < kEpochLimit, "epoch number"); }

void check_disk(DiskId disk) { require(disk.value < kMaxDisks, "disk number"); }

void check_range(std::uint64_t offset, std::uint64_t length) {
  require(offset % kDiskSector == 0 && length % kDiskSector == 0, "alignment of a disk range");
  require(length > 0 && length <= kMaxDiskBytes && offset <= kMaxDiskBytes - length, "disk range");
}

// check() throws ProtocolError for what is out of bounds, and returns the length of the body.

std::size_t check(const Hello& hello) {
  require(hello.term.value < kTermLimit, "term number");
  require(hello.machine_config.size() <= kMaxMachineConfigBytes, "length of the machine configuration");
  require(hello.disk_bytes.size() <= kMaxDisks, "number of disks");
  for (const std::uint64_t bytes : hello.disk_bytes) {
    require(bytes > 0 && bytes <= kMaxDiskBytes && bytes % kDiskSector == 0, "size of a disk");
  }
  require(hello.strategy == Strategy::kCopy || hello.strategy == Strategy::kLockstep, "strategy");
  return 0;
}

std::size_t check(const Welcome&) { return 0; }

std::size_t check(const Refuse&) { return 0; }

template <class Range>
void check_digest_range(const Range& range) {
  check_disk(range.disk);
  require(range.count > 0 && range.count <= kMaxDigestsPerMessage, "number of digests");
  require(range.first <= kMaxDiskBytes / kDigestBlockBytes, "digest block number");
}

std::size_t check(const DiskDigestRequest& request) {
  check_digest_range(request);
  return 0;
}

std::size_t check(const DiskDigests& digests) {
  check_digest_range(digests);
  return digests.count * kDigestBytes;
}

std::size_t check(const DiskBlocks& blocks) {
  check_disk(blocks.disk);
  require(!blocks.extents.empty() && blocks.extents.size() <= kMaxDiskOperationsPerMessage,
          "number of disk extents");
  BodySize body;
  for (const DiskExtent& extent : blocks.extents) {
    check_range(extent.offset, extent.length);
    if (!extent.zero) body.add(extent.length);
  }
  return body.bytes();
}

std::size_t check(const SyncPages& pages) { return check_runs(pages.runs); }

std::size_t check(const SyncMark&) { return 0; }

std::size_t check(const SyncEnd& end) {
  check_epoch(end.epoch);
  require(end.state_bytes <= kMaxBodyBytes, "length of the machine state");
  return end.state_bytes;
}

std::size_t check(const EpochOpen& open) {
  check_epoch(open.epoch);
  require(open.kind <= RecordKind::kInputs, "kind of a record");
  return 0;
}

template <class Piece>
std::size_t check_piece(const Piece& piece) {
  check_epoch(piece.epoch);
  require(piece.bytes > 0 && piece.bytes <= kMaxBodyBytes, "length of a piece");
  return piece.bytes;
}
std::size_t check(const EpochInputs& inputs) { return check_piece(inputs); }
std::size_t check(const EpochDigest& digest) { return check_piece(digest); }
std::size_t check(const MachineState& state) { return check_piece(state); }

std::size_t check(const EpochPages& pages) {
  check_epoch(pages.epoch);
  return check_runs(pages.runs);
}

std::size_t check(const EpochDiskWrites& writes) {
  check_epoch(writes.epoch);
  require(!writes.operations.empty() && writes.operations.size() <= kMaxDiskOperationsPerMessage,
          "number of disk operations");
  BodySize body;
  for (const DiskOperation& operation : writes.operations) {
    check_disk(operation.disk);
    if (operation.kind == DiskOperationKind::kFlush) {
      require(operation.offset == 0 && operation.length == 0, "a flush with a range");
      continue;
    }
    require(operation.kind <= DiskOperationKind::kZero, "kind of a disk operation");
    check_range(operation.offset, operation.length);
    if (operation.kind == DiskOperationKind::kWrite) body.add(operation.length);
  }
  return body.bytes();
}

std::size_t check(const EpochClose& close) {
  check_epoch(close.epoch);
  require(close.state_bytes <= kMaxBodyBytes, "length of the machine state");
  require(close.input_bytes <= kMaxInputBytesPerEpoch, "length of the inputs");
  require(close.digest_bytes <= kMaxDigestBytesPerEpoch, "length of the digest");
  require(!close.clock || *close.clock >= std::chrono::nanoseconds(0), "clock value");
  return close.state_bytes;
}

std::size_t check(const NewTerm& next) {
  require(next.term.value < kTermLimit, "term number");
  return 0;
}
std::size_t check(const Ack& ack) {
  check_epoch(ack.epoch);
  return 0;
}
std::size_t check(const Executed& executed) {
  check_epoch(executed.epoch);
  return 0;
}
std::size_t check(const Divergence& divergence) {
  check_epoch(divergence.epoch);
  require(divergence.pages <= kMaxDivergedPages, "number of diverged pages");
  require(!divergence.all_pages || divergence.pages == 0, "all pages, and some of them");
  return divergence.pages * kPageNumberBytes;
}
std::size_t check(const Heartbeat&) { return 0; }

std::size_t check(const Goodbye& goodbye) {
  require(goodbye.reason <= GoodbyeReason::kTookOver, "reason of a goodbye");
  return 0;
}

std::size_t check(const HandOver& handover) {
  check_epoch(handover.epoch);
  return 0;
}

std::size_t check(const Message& message) {
  return std::visit([](const auto& alternative) { return check(alternative); }, message);
}

// Encoding.

kj::ArrayPtr<const kj::byte> to_kj(ByteView bytes) {
  return {reinterpret_cast<const kj::byte*>(bytes.data()), bytes.size()};
}

void write_runs(capnp::List<schema::PageRun>::Builder list, const std::vector<PageRun>& runs) {
  for (unsigned i = 0; i < list.size(); ++i) {
    list[i].setFirst(runs[i].first.value);
    list[i].setCount(static_cast<std::uint32_t>(runs[i].count));
    list[i].setZero(runs[i].zero);
  }
}

// Reasons are for people; a longer one is cut rather than refused.
std::string cut(const std::string& text) { return text.substr(0, kMaxTextBytes); }

unsigned size_of(const auto& list) { return static_cast<unsigned>(list.size()); }

template <class Range>
void write_digest_range(schema::DigestRange::Builder out, const Range& range) {
  out.setDisk(range.disk.value);
  out.setFirst(range.first);
  out.setCount(range.count);
}

void write(schema::Message::Builder root, const Hello& hello) {
  auto out = root.initHello();
  out.setVersion(hello.version);
  out.setVm(to_kj(hello.vm.value));
  out.setTerm(hello.term.value);
  out.setStrategy(static_cast<std::uint16_t>(hello.strategy));
  out.setMachineConfig(to_kj(hello.machine_config));
  out.setConfigDigest(to_kj(hello.config_digest));
  auto disks = out.initDiskBytes(size_of(hello.disk_bytes));
  for (unsigned i = 0; i < disks.size(); ++i) disks.set(i, hello.disk_bytes[i]);
}

void write(schema::Message::Builder root, const Welcome& welcome) {
  auto out = root.initWelcome();
  out.setVersion(welcome.version);
  out.setTerm(welcome.term.value);
  out.setConfigDigest(to_kj(welcome.config_digest));
  out.setReplica(to_kj(welcome.replica.value));
}

void write(schema::Message::Builder root, const Refuse& refuse) { root.setRefuse(cut(refuse.reason)); }

void write(schema::Message::Builder root, const DiskDigestRequest& request) {
  write_digest_range(root.initDiskDigestRequest(), request);
}

void write(schema::Message::Builder root, const DiskDigests& digests) {
  write_digest_range(root.initDiskDigests(), digests);
}

void write(schema::Message::Builder root, const DiskBlocks& blocks) {
  auto out = root.initDiskBlocks();
  out.setDisk(blocks.disk.value);
  auto extents = out.initExtents(size_of(blocks.extents));
  for (unsigned i = 0; i < extents.size(); ++i) {
    extents[i].setOffset(blocks.extents[i].offset);
    extents[i].setLength(blocks.extents[i].length);
    extents[i].setZero(blocks.extents[i].zero);
  }
}

void write(schema::Message::Builder root, const SyncPages& pages) {
  write_runs(root.initSyncPages(size_of(pages.runs)), pages.runs);
}

void write(schema::Message::Builder root, const SyncMark& mark) { root.setSyncMark(mark.number); }

void write(schema::Message::Builder root, const SyncEnd& end) {
  auto out = root.initSyncEnd();
  out.setEpoch(end.epoch.value);
  out.setPages(end.pages);
  out.setZeroPages(end.zero_pages);
  out.setDiskExtents(end.disk_extents);
  out.setStateBytes(end.state_bytes);
}

void write(schema::Message::Builder root, const EpochOpen& open) {
  auto out = root.initEpochOpen();
  out.setEpoch(open.epoch.value);
  out.setKind(static_cast<std::uint16_t>(open.kind));
}

template <class Piece>
void write_piece(schema::EpochPiece::Builder out, const Piece& piece) {
  out.setEpoch(piece.epoch.value);
  out.setBytes(piece.bytes);
}

void write(schema::Message::Builder root, const EpochInputs& inputs) { write_piece(root.initEpochInputs(), inputs); }
void write(schema::Message::Builder root, const EpochDigest& digest) { write_piece(root.initEpochDigest(), digest); }
void write(schema::Message::Builder root, const MachineState& state) { write_piece(root.initMachineState(), state); }

void write(schema::Message::Builder root, const EpochPages& pages) {
  auto out = root.initEpochPages();
  out.setEpoch(pages.epoch.value);
  write_runs(out.initRuns(size_of(pages.runs)), pages.runs);
}

void write(schema::Message::Builder root, const EpochDiskWrites& writes) {
  auto out = root.initEpochDiskWrites();
  out.setEpoch(writes.epoch.value);
  auto operations = out.initOperations(size_of(writes.operations));
  for (unsigned i = 0; i < operations.size(); ++i) {
    operations[i].setDisk(writes.operations[i].disk.value);
    operations[i].setKind(static_cast<std::uint16_t>(writes.operations[i].kind));
    operations[i].setOffset(writes.operations[i].offset);
    operations[i].setLength(writes.operations[i].length);
  }
}

void write(schema::Message::Builder root, const EpochClose& close) {
  auto out = root.initEpochClose();
  out.setEpoch(close.epoch.value);
  out.setPages(close.pages);
  out.setZeroPages(close.zero_pages);
  out.setDiskOperations(close.disk_operations);
  out.setFlushed(close.flushed);
  out.setStateBytes(close.state_bytes);
  out.setInputBytes(close.input_bytes);
  out.setDigestBytes(close.digest_bytes);
  out.setHasClock(close.clock.has_value());
  if (close.clock) out.setClockNanoseconds(close.clock->count());
}

void write(schema::Message::Builder root, const NewTerm& next) { root.setNewTerm(next.term.value); }
void write(schema::Message::Builder root, const Ack& ack) { root.setAck(ack.epoch.value); }
void write(schema::Message::Builder root, const Executed& executed) { root.setExecuted(executed.epoch.value); }
void write(schema::Message::Builder root, const Divergence& divergence) {
  auto out = root.initDivergence();
  out.setEpoch(divergence.epoch.value);
  out.setPages(divergence.pages);
  out.setAllPages(divergence.all_pages);
}
void write(schema::Message::Builder root, const Heartbeat& heartbeat) {
  root.setHeartbeat(heartbeat.sequence);
}

void write(schema::Message::Builder root, const Goodbye& goodbye) {
  auto out = root.initGoodbye();
  out.setReason(static_cast<std::uint16_t>(goodbye.reason));
  out.setText(cut(goodbye.text));
}

void write(schema::Message::Builder root, const HandOver& handover) { root.setHandOver(handover.epoch.value); }

// Decoding. List sizes are checked before anything is allocated for them; check() then looks at the values.

template <std::size_t N>
void read_fixed(capnp::Data::Reader data, std::array<std::byte, N>& into, const char* what) {
  require(data.size() == N, what);
  std::memcpy(into.data(), data.begin(), N);
}

Bytes read_bytes(capnp::Data::Reader data, std::size_t limit, const char* what) {
  require(data.size() <= limit, what);
  const auto* first = reinterpret_cast<const std::byte*>(data.begin());
  return {first, first + data.size()};
}

std::string read_text(capnp::Text::Reader text) {
  require(text.size() <= kMaxTextBytes, "length of a text");
  return {text.begin(), text.size()};
}

std::vector<PageRun> read_runs(capnp::List<schema::PageRun>::Reader list) {
  require(list.size() <= kMaxRunsPerMessage, "number of page runs");
  std::vector<PageRun> runs;
  runs.reserve(list.size());
  for (const auto run : list) runs.push_back({{run.getFirst()}, run.getCount(), run.getZero()});
  return runs;
}

Hello read(schema::Hello::Reader in) {
  Hello hello;
  hello.version = in.getVersion();
  read_fixed(in.getVm(), hello.vm.value, "VM id");
  hello.term = {in.getTerm()};
  hello.strategy = static_cast<Strategy>(in.getStrategy());
  hello.machine_config =
      read_bytes(in.getMachineConfig(), kMaxMachineConfigBytes, "length of the machine configuration");
  read_fixed(in.getConfigDigest(), hello.config_digest, "configuration digest");
  require(in.getDiskBytes().size() <= kMaxDisks, "number of disks");
  for (const std::uint64_t bytes : in.getDiskBytes()) hello.disk_bytes.push_back(bytes);
  return hello;
}

Welcome read(schema::Welcome::Reader in) {
  Welcome welcome{in.getVersion(), {in.getTerm()}, {}, {}};
  read_fixed(in.getConfigDigest(), welcome.config_digest, "configuration digest");
  read_fixed(in.getReplica(), welcome.replica.value, "replica id");
  return welcome;
}

template <class Range>
Range read_digest_range(schema::DigestRange::Reader in) {
  return {{in.getDisk()}, in.getFirst(), in.getCount()};
}

DiskBlocks read(schema::DiskBlocks::Reader in) {
  DiskBlocks blocks{{in.getDisk()}, {}};
  const auto extents = in.getExtents();
  require(extents.size() <= kMaxDiskOperationsPerMessage, "number of disk extents");
  blocks.extents.reserve(extents.size());
  for (const auto extent : extents) {
    blocks.extents.push_back({extent.getOffset(), extent.getLength(), extent.getZero()});
  }
  return blocks;
}

SyncEnd read(schema::SyncEnd::Reader in) {
  return {{in.getEpoch()}, in.getPages(), in.getZeroPages(), in.getDiskExtents(), in.getStateBytes()};
}

EpochPages read(schema::EpochPages::Reader in) { return {{in.getEpoch()}, read_runs(in.getRuns())}; }

EpochDiskWrites read(schema::EpochDiskWrites::Reader in) {
  EpochDiskWrites writes{{in.getEpoch()}, {}};
  const auto operations = in.getOperations();
  require(operations.size() <= kMaxDiskOperationsPerMessage, "number of disk operations");
  writes.operations.reserve(operations.size());
  for (const auto operation : operations) {
    writes.operations.push_back({{operation.getDisk()},
                                 static_cast<DiskOperationKind>(operation.getKind()),
                                 operation.getOffset(),
                                 operation.getLength()});
  }
  return writes;
}

EpochClose read(schema::EpochClose::Reader in) {
  std::optional<std::chrono::nanoseconds> clock;
  if (in.getHasClock()) clock.emplace(in.getClockNanoseconds());
  return {{in.getEpoch()},        in.getPages(),   in.getZeroPages(),
          in.getDiskOperations(), in.getFlushed(), in.getStateBytes(),
          in.getInputBytes(),     in.getDigestBytes(), clock};
}

EpochOpen read(schema::EpochOpen::Reader in) { return {{in.getEpoch()}, static_cast<RecordKind>(in.getKind())}; }

template <class Piece>
Piece read_piece(schema::EpochPiece::Reader in) {
  return {{in.getEpoch()}, in.getBytes()};
}

Divergence read(schema::Divergence::Reader in) { return {{in.getEpoch()}, in.getPages(), in.getAllPages()}; }

Goodbye read(schema::Goodbye::Reader in) {
  return {static_cast<GoodbyeReason>(in.getReason()), read_text(in.getText())};
}

Message read(schema::Message::Reader root) {
  switch (root.which()) {
    case schema::Message::HELLO: return read(root.getHello());
    case schema::Message::WELCOME: return read(root.getWelcome());
    case schema::Message::REFUSE: return Refuse{read_text(root.getRefuse())};
    case schema::Message::DISK_DIGEST_REQUEST:
      return read_digest_range<DiskDigestRequest>(root.getDiskDigestRequest());
    case schema::Message::DISK_DIGESTS: return read_digest_range<DiskDigests>(root.getDiskDigests());
    case schema::Message::DISK_BLOCKS: return read(root.getDiskBlocks());
    case schema::Message::SYNC_PAGES: return SyncPages{read_runs(root.getSyncPages())};
    case schema::Message::SYNC_MARK: return SyncMark{root.getSyncMark()};
    case schema::Message::SYNC_END: return read(root.getSyncEnd());
    case schema::Message::EPOCH_OPEN: return read(root.getEpochOpen());
    case schema::Message::EPOCH_PAGES: return read(root.getEpochPages());
    case schema::Message::EPOCH_DISK_WRITES: return read(root.getEpochDiskWrites());
    case schema::Message::EPOCH_CLOSE: return read(root.getEpochClose());
    case schema::Message::NEW_TERM: return NewTerm{{root.getNewTerm()}};
    case schema::Message::ACK: return Ack{{root.getAck()}};
    case schema::Message::HEARTBEAT: return Heartbeat{root.getHeartbeat()};
    case schema::Message::GOODBYE: return read(root.getGoodbye());
    case schema::Message::EPOCH_INPUTS: return read_piece<EpochInputs>(root.getEpochInputs());
    case schema::Message::EPOCH_DIGEST: return read_piece<EpochDigest>(root.getEpochDigest());
    case schema::Message::MACHINE_STATE: return read_piece<MachineState>(root.getMachineState());
    case schema::Message::EXECUTED: return Executed{{root.getExecuted()}};
    case schema::Message::DIVERGENCE: return read(root.getDivergence());
    case schema::Message::HAND_OVER: return HandOver{{root.getHandOver()}};
  }
  throw ProtocolError("malformed message: unknown kind " +
                      std::to_string(static_cast<unsigned>(root.which())));
}

// Cap'n Proto reads words in place, so they must be aligned; what a header may cost to walk is bounded.
Message read_header(ByteView header) {
  std::vector<capnp::word> words(header.size() / sizeof(capnp::word));
  std::memcpy(words.data(), header.data(), header.size());
  capnp::ReaderOptions options;
  options.traversalLimitInWords = 2 * kMaxHeaderBytes / sizeof(capnp::word);
  options.nestingLimit = 8;
  try {
    capnp::FlatArrayMessageReader reader({words.data(), words.size()}, options);
    require(reader.getEnd() == words.data() + words.size(), "bytes after the header");
    return read(reader.getRoot<schema::Message>());
  } catch (const kj::Exception& error) {
    throw ProtocolError(std::string("malformed message: ") + error.getDescription().cStr());
  }
}

template <std::size_t N>
std::array<std::byte, N> blake2b(ByteView bytes) {
  std::array<std::byte, N> digest;
  const int result =
      crypto_generichash(reinterpret_cast<unsigned char*>(digest.data()), N,
                         reinterpret_cast<const unsigned char*>(bytes.data()), bytes.size(), nullptr, 0);
  POLLUX_ASSERT(result == 0);
  return digest;
}

}  // namespace

std::size_t body_length(const Message& message) {
  const auto pages = [](const std::vector<PageRun>& runs) {
    std::size_t bytes = 0;
    for (const PageRun& run : runs) bytes += run.zero ? 0 : run.count * kPageSize;
    return bytes;
  };
  const auto extents = [](const DiskBlocks& blocks) {
    std::size_t bytes = 0;
    for (const DiskExtent& extent : blocks.extents) bytes += extent.zero ? 0 : extent.length;
    return bytes;
  };
  const auto writes = [](const EpochDiskWrites& record) {
    std::size_t bytes = 0;
    for (const DiskOperation& operation : record.operations) {
      bytes += operation.kind == DiskOperationKind::kWrite ? operation.length : 0;
    }
    return bytes;
  };
  return std::visit(Overloaded{[](const DiskDigests& m) -> std::size_t { return m.count * kDigestBytes; },
                               [&](const DiskBlocks& m) { return extents(m); },
                               [&](const SyncPages& m) { return pages(m.runs); },
                               [&](const EpochPages& m) { return pages(m.runs); },
                               [&](const EpochDiskWrites& m) { return writes(m); },
                               [](const SyncEnd& m) -> std::size_t { return m.state_bytes; },
                               [](const EpochClose& m) -> std::size_t { return m.state_bytes; },
                               [](const EpochInputs& m) -> std::size_t { return m.bytes; },
                               [](const EpochDigest& m) -> std::size_t { return m.bytes; },
                               [](const MachineState& m) -> std::size_t { return m.bytes; },
                               [](const Divergence& m) -> std::size_t { return m.pages * kPageNumberBytes; },
                               [](const auto&) -> std::size_t { return 0; }},
                    message);
}

Bytes encode(const Message& message) {
  try {
    static_cast<void>(check(message));
  } catch (const ProtocolError&) {
    POLLUX_ASSERT(!"a message of our own is out of bounds");
  }
  // Most headers fit the scratch space; it must be zero.
  capnp::word scratch[256] = {};
  capnp::MallocMessageBuilder builder({scratch, std::size(scratch)});
  std::visit([&](const auto& alternative) { write(builder.initRoot<schema::Message>(), alternative); },
             message);
  const auto segments = builder.getSegmentsForOutput();
  Bytes header(capnp::computeSerializedSizeInWords(segments) * sizeof(capnp::word));
  POLLUX_ASSERT(header.size() <= kMaxHeaderBytes);
  kj::ArrayOutputStream out({reinterpret_cast<kj::byte*>(header.data()), header.size()});
  capnp::writeMessage(out, segments);
  return header;
}

Message decode(ByteView header, std::size_t body_bytes) {
  require(!header.empty() && header.size() <= kMaxHeaderBytes, "length of the header");
  require(header.size() % sizeof(capnp::word) == 0, "length of the header");
  Message message = read_header(header);
  require(check(message) == body_bytes, "header and body disagree");
  return message;
}

Bytes encode_page_numbers(const std::vector<PageNumber>& pages) {
  POLLUX_ASSERT(pages.size() <= kMaxDivergedPages);
  Bytes body;
  body.reserve(pages.size() * kPageNumberBytes);
  for (const PageNumber page : pages) {
    for (std::size_t i = 0; i < kPageNumberBytes; ++i) body.push_back(static_cast<std::byte>(page.value >> (8 * i)));
  }
  return body;
}

std::vector<PageNumber> decode_page_numbers(ByteView body) {
  require(body.size() % kPageNumberBytes == 0, "length of page numbers");
  std::vector<PageNumber> pages;
  pages.reserve(body.size() / kPageNumberBytes);
  for (; !body.empty(); body = body.subspan(kPageNumberBytes)) {
    PageNumber page;
    for (std::size_t i = 0; i < kPageNumberBytes; ++i) page.value |= std::to_integer<std::uint64_t>(body[i]) << (8 * i);
    require(page.value < kPageNumberLimit && (pages.empty() || pages.back() < page), "page number");
    pages.push_back(page);
  }
  return pages;
}

BlockDigest digest_block(ByteView block) {
  // Most blocks of most disks are zero, and comparing is far faster than hashing.
  static const Bytes zeros(kDigestBlockBytes);
  static const BlockDigest of_zeros = blake2b<kDigestBytes>(zeros);
  const bool zero = block.size() == zeros.size() && std::memcmp(block.data(), zeros.data(), zeros.size()) == 0;
  return zero ? of_zeros : blake2b<kDigestBytes>(block);
}
ConfigDigest digest_config(ByteView machine_config) { return blake2b<32>(machine_config); }

}  // namespace pollux::protocol
