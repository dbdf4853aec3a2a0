// The kv_server guest's requests and responses: each one UDP datagram, little endian, one fixed layout.
//
// A client numbers its requests from 1 and has one under way at a time; it repeats it until the response
// comes. The server carries out each number once and repeats its response to the last one, so that a request
// sent twice, or a response lost, changes nothing.
#pragma once

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

}  // namespace pollux::guests
