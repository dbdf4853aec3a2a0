// Frames of a host on the network of a guest under test: MAC 02:00:00:00:00:09, IP 10.0.0.9; the guest's are
// 52:54:00:00:00:01 and 10.0.0.2. And requests to the kv_server guest.
#pragma once

#include <array>
#include <cstdint>
#include <string>

#include "base/bytes.h"
#include "tests/guests/lockstep/kv_protocol.h"

namespace pollux::testing {

inline constexpr std::array<std::uint8_t, 6> kGuestMac{0x52, 0x54, 0, 0, 0, 1}, kClientMac{2, 0, 0, 0, 0, 9};
inline constexpr std::array<std::uint8_t, 4> kGuestIp{10, 0, 0, 2}, kClientIp{10, 0, 0, 9};
// Where headers and the payload of UDP begin in a frame.
inline constexpr std::size_t kIp = 14, kUdp = 34, kPayload = 42;

// Big endian, as everything in these headers.
void put16(Bytes& frame, std::size_t at, std::uint16_t value);
[[nodiscard]] std::uint16_t get16(ByteView frame, std::size_t at);
// RFC 1071; 0 over what holds its own right checksum.
[[nodiscard]] std::uint16_t internet_checksum(ByteView bytes, std::uint32_t sum = 0);
[[nodiscard]] std::uint16_t udp_checksum(ByteView frame);

// From the client to the guest; `payload` bytes of zero behind the IPv4 header.
[[nodiscard]] Bytes ipv4_frame(std::uint8_t protocol, std::size_t payload);
// To the key-value server's port.
[[nodiscard]] Bytes udp_frame(ByteView payload);
[[nodiscard]] Bytes arp_request();

[[nodiscard]] guests::KvRequest kv_request(guests::KvOperation operation, std::uint64_t client, std::uint64_t sequence,
                                           const std::string& key, const std::string& value = "");

}  // namespace pollux::testing
