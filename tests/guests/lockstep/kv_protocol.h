// The kv_server guest's requests and responses: each one UDP datagram, little endian, one fixed layout.
//
// A client numbers its requests from 1 and has one under way at a time; it repeats it until the response
// comes. The server carries out each number once and repeats its response to the last one, so that a request
// sent twice, or a response lost, changes nothing.
#pragma once

#include <cstddef>
#include <cstdint>

namespace pollux::guests {

inline constexpr std::uint16_t kKvPort = 7000;
inline constexpr std::uint32_t kKvMagic = 0x3156'4b50;  // "PKV1"
inline constexpr std::size_t kMaxKvKey = 32;
inline constexpr std::size_t kMaxKvValue = 128;

enum class KvOperation : std::uint8_t {
  kPut = 1,
  kGet = 2,
  kIncrement = 3,  // of a value of 8 bytes, which is created as 0; answers the new one
};

enum class KvStatus : std::uint8_t {
  kOk = 0,
  kMissing = 1,  // no such key
  kBad = 2,      // malformed, or an increment of what is no number
  kFull = 3,     // no room for another key or client
  kOld = 4,      // a number before the last
};

struct KvRequest {
  std::uint32_t magic;
  KvOperation operation;
  std::uint8_t key_bytes;
  std::uint16_t value_bytes;
  std::uint64_t client;
  std::uint64_t sequence;
  std::uint8_t key[kMaxKvKey];
  std::uint8_t value[kMaxKvValue];
};
static_assert(sizeof(KvRequest) == 184);

struct KvResponse {
  std::uint32_t magic;
  KvStatus status;
  std::uint8_t reserved;
  std::uint16_t value_bytes;
  std::uint64_t client;
  std::uint64_t sequence;
  std::uint8_t value[kMaxKvValue];
};
static_assert(sizeof(KvResponse) == 152);

// FNV-1a, its halves mixed.
constexpr std::uint64_t kv_hash(const std::uint8_t* bytes, std::size_t size) {
  std::uint64_t state = 0xcbf2'9ce4'8422'2325;
  for (std::size_t i = 0; i < size; ++i) state = (state ^ bytes[i]) * 0x100'0000'01b3;
  return state ^ state >> 32;
}

// With journal=1 every write that was carried out is on the first disk, and flushed, before it is answered: record n (from 1
// on) in sector (n - 1) mod the disk's sectors. So many at most are written, and flushed, together.
inline constexpr unsigned kMaxKvBatch = 16;
inline constexpr std::uint32_t kKvJournalMagic = 0x314a'4b50;  // "PKJ1"
struct KvJournalRecord {
  std::uint32_t magic;
  KvOperation operation;
  std::uint8_t key_bytes;
  std::uint16_t value_bytes;
  std::uint64_t number;
  std::uint64_t client;
  std::uint64_t sequence;
  std::uint8_t key[kMaxKvKey];
  std::uint8_t value[kMaxKvValue];  // of the key from here on
  std::uint8_t reserved[312];
  std::uint64_t hash;  // kv_hash() of all before
};
static_assert(sizeof(KvJournalRecord) == 512);

}  // namespace pollux::guests
