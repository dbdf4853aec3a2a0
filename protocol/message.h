// What replicas say to each other.
//
// A wire message is a small Cap'n Proto header and an optional raw body beside it. The structs here are the
// header's meaning; page data, disk data, digests and machine state travel as the body and are never copied
// into the header. body_length() is what the header promises; decode() refuses a header whose body has
// another length.
#pragma once

#include <array>
#include <chrono>
#include <cstdint>
#include <optional>
#include <ostream>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "base/bytes.h"
#include "base/error.h"
#include "protocol/types.h"

namespace pollux::protocol {

inline constexpr std::uint32_t kProtocolVersion = 4;

// Bounds of one message. decode() holds the peer to them, encode() asserts them.
inline constexpr std::size_t kMaxHeaderBytes = 64 << 10;
inline constexpr std::size_t kMaxBodyBytes = 1 << 20;
inline constexpr std::size_t kMaxPagesPerMessage = kMaxBodyBytes / kPageSize;  // pages with data
inline constexpr std::size_t kMaxRunsPerMessage = 2048;
inline constexpr std::uint64_t kMaxPagesPerRun = 1 << 20;      // bounds the work one zero run can cause
inline constexpr std::uint64_t kPageNumberLimit = 1ULL << 40;  // 52 bits of guest-physical address
inline constexpr std::uint64_t kEpochLimit = 1ULL << 63;       // the next epoch's number never wraps
inline constexpr std::uint64_t kTermLimit = 1ULL << 63;
inline constexpr std::size_t kMaxDiskOperationsPerMessage = 1024;
inline constexpr std::uint32_t kMaxDisks = 16;
inline constexpr std::uint64_t kMaxDiskBytes = 1ULL << 50;
inline constexpr std::uint64_t kDiskSector = 512;  // unit of every disk offset and length
inline constexpr std::size_t kMaxMachineConfigBytes = 16 << 10;
inline constexpr std::size_t kMaxTextBytes = 1024;
inline constexpr std::uint64_t kMaxStateBytes = 96 << 20;  // of a machine, in pieces of kMaxBodyBytes
// Of one epoch's record in lockstep: what it took from outside, and what proves that both executed it alike.
inline constexpr std::uint64_t kMaxInputBytesPerEpoch = 16 << 20;
inline constexpr std::uint64_t kMaxDigestBytesPerEpoch = 32 << 20;
inline constexpr std::size_t kMaxDivergedPages = 1 << 16;  // more of them are reported as all of memory
inline constexpr std::size_t kPageNumberBytes = 8;         // in a body, little endian

// Full sync compares disks by digests of blocks of this size (the last block of a disk may be shorter).
inline constexpr std::uint64_t kDigestBlockBytes = 64 << 10;
inline constexpr std::size_t kDigestBytes = 16;
inline constexpr std::size_t kMaxDigestsPerMessage = kMaxBodyBytes / kDigestBytes;

// The peer sent something that is malformed or breaks the rules. The connection cannot go on.
class ProtocolError : public Error {
 public:
  using Error::Error;
};

enum class Strategy : std::uint16_t { kCopy = 0, kLockstep = 1 };

using ConfigDigest = std::array<std::byte, 32>;
using BlockDigest = std::array<std::byte, kDigestBytes>;

// Primary to backup, first of all.
struct Hello {
  std::uint32_t version = kProtocolVersion;
  VmId vm;
  Term term;
  Strategy strategy = Strategy::kCopy;
  Bytes machine_config;  // opaque here: the VMM's own encoding
  ConfigDigest config_digest{};
  std::vector<std::uint64_t> disk_bytes;  // size of each disk, in configuration order
  bool operator==(const Hello&) const = default;
};

// Backup to primary: the machine fits, begin the full sync.
struct Welcome {
  std::uint32_t version = kProtocolVersion;
  Term term;
  ConfigDigest config_digest{};
  ReplicaId replica{};  // by which a claim can name it as a member
  bool operator==(const Welcome&) const = default;
};

// Backup to primary: it does not; the link is closed next.
struct Refuse {
  std::string reason;
  bool operator==(const Refuse&) const = default;
};

// Primary to backup: tell me the digests of `count` blocks of kDigestBlockBytes, from block number `first`.
struct DiskDigestRequest {
  DiskId disk;
  std::uint64_t first = 0;
  std::uint32_t count = 0;  // 1..kMaxDigestsPerMessage
  bool operator==(const DiskDigestRequest&) const = default;
};

// Backup to primary. Body: count * kDigestBytes.
struct DiskDigests {
  DiskId disk;
  std::uint64_t first = 0;
  std::uint32_t count = 0;
  bool operator==(const DiskDigests&) const = default;
};

// `count` pages from `first` on. The pages of a zero run are all zero and have no bytes in the body.
struct PageRun {
  PageNumber first;
  std::uint64_t count = 0;  // 1..kMaxPagesPerRun
  bool zero = false;
  bool operator==(const PageRun&) const = default;
};

// A range of a disk. A zero extent reads as zeros and has no bytes in the body.
struct DiskExtent {
  std::uint64_t offset = 0;  // bytes, a multiple of kDiskSector
  std::uint64_t length = 0;  // bytes, a multiple of kDiskSector, not 0
  bool zero = false;
  bool operator==(const DiskExtent&) const = default;
};

// Full sync. Body: the extents' data in order.
struct DiskBlocks {
  DiskId disk;
  std::vector<DiskExtent> extents;
  bool operator==(const DiskBlocks&) const = default;
};

// Full sync. Body: the pages of the runs in order. A page may be sent again; the last one counts.
struct SyncPages {
  std::vector<PageRun> runs;
  bool operator==(const SyncPages&) const = default;
};

// During the full sync, both ways: the backup sends it back once everything before it is in its image, durably. One at a
// time. What the last pause of the sync has to wait for is then only what was sent after the last mark.
struct SyncMark {
  std::uint64_t number = 0;
  bool operator==(const SyncMark&) const = default;
};

// Body: a piece of the machine's state at the end of `epoch`, in the VMM's own encoding: opaque here. Pieces are in order; the
// last one is the body of the SyncEnd or EpochClose that they belong to.
struct MachineState {
  EpochId epoch;
  std::uint32_t bytes = 0;  // 1..kMaxBodyBytes
  bool operator==(const MachineState&) const = default;
};

// The full sync is complete: with this state the image is the machine at the end of `epoch` (0 at the start
// of a machine's protection). Body: the machine state, or its last piece. Counts are of everything sent since Welcome, for a
// cross-check.
struct SyncEnd {
  EpochId epoch;
  std::uint64_t pages = 0;  // with data, repetitions counted
  std::uint64_t zero_pages = 0;
  std::uint64_t disk_extents = 0;
  std::uint32_t state_bytes = 0;
  bool operator==(const SyncEnd&) const = default;
};

// How the backup reaches the end of an epoch from the end of the one before.
enum class RecordKind : std::uint16_t {
  kPages = 0,   // by the pages, disk writes and state in the record (in lockstep: heals a replica that diverged)
  kInputs = 1,  // by executing it with the inputs in the record
};

// The record of one epoch: EpochOpen; of kPages any number of EpochPages, EpochDiskWrites and MachineState, of kInputs at least one
// EpochInputs and one EpochDigest; EpochClose.
struct EpochOpen {
  EpochId epoch;
  RecordKind kind = RecordKind::kPages;
  bool operator==(const EpochOpen&) const = default;
};

// Body: the pages of the runs in order, contiguous.
struct EpochPages {
  EpochId epoch;
  std::vector<PageRun> runs;
  bool operator==(const EpochPages&) const = default;
};

enum class DiskOperationKind : std::uint16_t {
  kWrite = 0,
  kDiscard = 1,  // the range reads as zeros, its space may be given back
  kZero = 2,     // the range reads as zeros
  kFlush = 3,    // offset and length are 0
};

struct DiskOperation {
  DiskId disk;
  DiskOperationKind kind = DiskOperationKind::kWrite;
  std::uint64_t offset = 0;  // bytes, a multiple of kDiskSector
  std::uint64_t length = 0;  // bytes, a multiple of kDiskSector; a longer write is split by its sender
  bool operator==(const DiskOperation&) const = default;
};

// In the order the guest issued them. Body: the data of the kWrite operations in order.
struct EpochDiskWrites {
  EpochId epoch;
  std::vector<DiskOperation> operations;
  bool operator==(const EpochDiskWrites&) const = default;
};

// Lockstep. Body: a piece of the epoch's inputs, in the VMM's own encoding: opaque here. Pieces are in order.
struct EpochInputs {
  EpochId epoch;
  std::uint32_t bytes = 0;  // 1..kMaxBodyBytes
  bool operator==(const EpochInputs&) const = default;
};

// Lockstep. Body: a piece of the digest of the state at the epoch's end, in the VMM's own encoding.
struct EpochDigest {
  EpochId epoch;
  std::uint32_t bytes = 0;  // 1..kMaxBodyBytes
  bool operator==(const EpochDigest&) const = default;
};

// Body: the machine state at the end of the epoch, or its last piece, of a record of pages. Counts are of the whole record.
struct EpochClose {
  EpochId epoch;
  std::uint64_t pages = 0;  // with data
  std::uint64_t zero_pages = 0;
  std::uint64_t disk_operations = 0;  // of every kind
  bool flushed = false;               // the guest flushed a disk in this epoch
  std::uint32_t state_bytes = 0;
  std::uint64_t input_bytes = 0;
  std::uint64_t digest_bytes = 0;
  // Of a record of inputs: the primary's clock at the end of the epoch, since the Unix epoch, and in those inputs.
  std::optional<std::chrono::nanoseconds> clock = std::nullopt;
  bool operator==(const EpochClose&) const = default;
};

// Primary to backup, at any time after Hello: it leads in this later term now. A backup that loses its primary
// claims the term after the last it was told.
struct NewTerm {
  Term term;
  bool operator==(const NewTerm&) const = default;
};

// Primary to backup: the guest stands still at the end of this epoch, which is committed, and the backup is to claim the
// next term and lead. The primary lets nothing out any more unless it wins that term itself.
struct HandOver {
  EpochId epoch;
  bool operator==(const HandOver&) const = default;
};

// Backup to primary: every epoch up to this one is held whole, and durably up to its last flushed epoch.
struct Ack {
  EpochId epoch;
  bool operator==(const Ack&) const = default;
};

// Lockstep, backup to primary: every epoch up to this one is executed, and was as it should be. Not each is told.
struct Executed {
  EpochId epoch;
  bool operator==(const Executed&) const = default;
};

// Lockstep, backup to primary: executed, this epoch did not end as the primary's did. Nothing more is executed before
// a record of pages. Body: the numbers of the pages to heal, ascending.
struct Divergence {
  EpochId epoch;
  std::uint32_t pages = 0;  // 0..kMaxDivergedPages
  bool all_pages = false;   // none are named: all of memory is to be healed
  bool operator==(const Divergence&) const = default;
};

struct Heartbeat {
  std::uint64_t sequence = 0;  // from 1, per direction
  bool operator==(const Heartbeat&) const = default;
};

enum class GoodbyeReason : std::uint16_t {
  kPoweredOff = 0,  // the guest powered off
  kReset = 1,       // the guest reset and the machine ends with it
  kStopped = 2,     // the operator stopped the sender
  kDropped = 3,     // the sender gives this peer up; `text` says why
  kTookOver = 4,    // a backup: it was handed over to, has won the term and leads; a primary: such a backup leads
};

// The sender leaves on purpose: the receiver ends and never promotes.
struct Goodbye {
  GoodbyeReason reason = GoodbyeReason::kStopped;
  std::string text;
  bool operator==(const Goodbye&) const = default;
};

using Message =
    std::variant<Hello, Welcome, Refuse, DiskDigestRequest, DiskDigests, DiskBlocks, SyncPages, SyncMark,
                 SyncEnd, EpochOpen, EpochPages, EpochDiskWrites, EpochClose, NewTerm, Ack, Heartbeat, Goodbye,
                 HandOver, EpochInputs, EpochDigest, Executed, Divergence, MachineState>;

// The length of the body that belongs to this header, in bytes.
[[nodiscard]] std::size_t body_length(const Message& message);

// The encoded header, at most kMaxHeaderBytes. The message must be within the bounds above (asserted).
[[nodiscard]] Bytes encode(const Message& message);

// Throws ProtocolError when the header is malformed, out of bounds, or promises another body than
// `body_bytes`.
[[nodiscard]] Message decode(ByteView header, std::size_t body_bytes);

// The digest of one block of a disk: BLAKE2b-128 (RFC 7693).
[[nodiscard]] BlockDigest digest_block(ByteView block);
// The digest of a machine configuration blob: BLAKE2b-256.
[[nodiscard]] ConfigDigest digest_config(ByteView machine_config);

[[nodiscard]] std::string_view name_of(const Message& message);
// One line for logs and traces, e.g. "EpochClose(3, pages 2, zero 0, disk 1, flushed, state 64)".
[[nodiscard]] std::string to_string(const Message& message);
inline std::ostream& operator<<(std::ostream& out, const Message& message) {
  return out << to_string(message);
}
[[nodiscard]] std::string_view to_string(GoodbyeReason reason);
[[nodiscard]] std::string_view to_string(Strategy strategy);

// The body of a Divergence.
[[nodiscard]] Bytes encode_page_numbers(const std::vector<PageNumber>& pages);
// Throws ProtocolError when a number is out of bounds or they do not ascend.
[[nodiscard]] std::vector<PageNumber> decode_page_numbers(ByteView body);

}  // namespace pollux::protocol
