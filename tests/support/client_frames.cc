#include "tests/support/client_frames.h"

#include <cstring>

namespace pollux::testing {

void put16(Bytes& frame, std::size_t at, std::uint16_t value) {
  frame[at] = static_cast<std::byte>(value >> 8);
  frame[at + 1] = static_cast<std::byte>(value);
}
std::uint16_t get16(ByteView frame, std::size_t at) {
  return static_cast<std::uint16_t>(static_cast<unsigned>(frame[at]) << 8 |
                                    static_cast<unsigned>(frame[at + 1]));
}

std::uint16_t internet_checksum(ByteView bytes, std::uint32_t sum) {
  for (std::size_t i = 0; i < bytes.size(); ++i)
    sum += static_cast<std::uint32_t>(bytes[i]) << (i % 2 == 0 ? 8 : 0);
  while (sum >> 16) sum = (sum & 0xffff) + (sum >> 16);
  return static_cast<std::uint16_t>(~sum);
}

Bytes ipv4_frame(std::uint8_t protocol, std::size_t payload) {
  Bytes frame(kUdp + payload);
  std::memcpy(frame.data(), kGuestMac.data(), 6);
  std::memcpy(frame.data() + 6, kClientMac.data(), 6);
  put16(frame, 12, 0x0800);
  frame[kIp] = std::byte{0x45};
  put16(frame, kIp + 2, static_cast<std::uint16_t>(20 + payload));
  frame[kIp + 8] = std::byte{64};
  frame[kIp + 9] = static_cast<std::byte>(protocol);
  std::memcpy(frame.data() + kIp + 12, kClientIp.data(), 4);
  std::memcpy(frame.data() + kIp + 16, kGuestIp.data(), 4);
  put16(frame, kIp + 10, internet_checksum(ByteView(frame).subspan(kIp, 20)));
  return frame;
}

std::uint16_t udp_checksum(ByteView frame) {
  const auto bytes = static_cast<std::uint32_t>(frame.size() - kUdp);
  std::uint32_t sum = 17 + bytes;
  for (std::size_t at = kIp + 12; at < kUdp; at += 2) sum += get16(frame, at);
  return internet_checksum(frame.subspan(kUdp), sum);
}

Bytes udp_frame(ByteView payload) {
  Bytes frame = ipv4_frame(17, 8 + payload.size());
  put16(frame, kUdp, 5'555);
  put16(frame, kUdp + 2, guests::kKvPort);
  put16(frame, kUdp + 4, static_cast<std::uint16_t>(8 + payload.size()));
  std::memcpy(frame.data() + kPayload, payload.data(), payload.size());
  put16(frame, kUdp + 6, udp_checksum(frame));
  return frame;
}

Bytes arp_request() {
  Bytes frame(42);
  std::memset(frame.data(), 0xff, 6);
  std::memcpy(frame.data() + 6, kClientMac.data(), 6);
  constexpr std::uint8_t kKind[] = {8, 6, 0, 1, 8, 0, 6, 4, 0, 1};
  std::memcpy(frame.data() + 12, kKind, sizeof kKind);
  std::memcpy(frame.data() + 22, kClientMac.data(), 6);
  std::memcpy(frame.data() + 28, kClientIp.data(), 4);
  std::memcpy(frame.data() + 38, kGuestIp.data(), 4);
  return frame;
}

guests::KvRequest kv_request(guests::KvOperation operation, std::uint64_t client, std::uint64_t sequence,
                             const std::string& key, const std::string& value) {
  guests::KvRequest r{};
  r.magic = guests::kKvMagic;
  r.operation = operation;
  r.key_bytes = static_cast<std::uint8_t>(key.size());
  r.value_bytes = static_cast<std::uint16_t>(value.size());
  r.client = client;
  r.sequence = sequence;
  std::memcpy(r.key, key.data(), key.size());
  std::memcpy(r.value, value.data(), value.size());
  return r;
}

}  // namespace pollux::testing
