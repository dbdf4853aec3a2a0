#include "vmm/net/announcement.h"

#include <algorithm>
#include <cstring>

namespace pollux::vmm {
namespace {

constexpr std::size_t kEthernetHeader = 14;
constexpr std::uint16_t kEtherTypeIpv4 = 0x0800;
constexpr std::uint16_t kEtherTypeArp = 0x0806;
constexpr std::uint16_t kEtherTypeRarp = 0x8035;
constexpr std::uint16_t kEtherTypeIpv6 = 0x86dd;
constexpr std::uint16_t kArpRequest = 1;
constexpr std::uint16_t kRarpRequest = 3;
constexpr std::size_t kArpSenderIp = kEthernetHeader + 14;  // RFC 826
constexpr std::size_t kIpv4Source = kEthernetHeader + 12;   // RFC 791
constexpr std::size_t kIpv6Source = kEthernetHeader + 8;    // RFC 8200

template <std::size_t N>
bool take(ByteView frame, std::size_t offset, std::array<std::uint8_t, N>& into) {
  if (frame.size() < offset + N) return false;
  std::memcpy(into.data(), frame.data() + offset, N);
  return std::any_of(into.begin(), into.end(), [](std::uint8_t byte) { return byte != 0; });
}

template <class Address>
void remember(std::vector<Address>& known, const Address& address) {
  if (std::find(known.begin(), known.end(), address) != known.end()) return;
  if (known.size() == AddressLearner::kMaxAddresses) known.erase(known.begin());
  known.push_back(address);
}

// Writes big-endian fields one behind the other.
class FrameWriter {
 public:
  FrameWriter& u8(std::uint8_t value) {
    frame_.push_back(std::byte{value});
    return *this;
  }
  FrameWriter& u16(std::uint16_t value) {
    return u8(static_cast<std::uint8_t>(value >> 8)).u8(static_cast<std::uint8_t>(value & 0xff));
  }
  template <std::size_t N>
  FrameWriter& bytes(const std::array<std::uint8_t, N>& values) {
    for (const std::uint8_t value : values) u8(value);
    return *this;
  }
  [[nodiscard]] Bytes take() {
    constexpr std::size_t kMinimum = 60;  // IEEE 802.3 without the checksum
    if (frame_.size() < kMinimum) frame_.resize(kMinimum);
    return std::move(frame_);
  }
  [[nodiscard]] const Bytes& so_far() const { return frame_; }
  void set_u16(std::size_t offset, std::uint16_t value) {
    frame_[offset] = std::byte(value >> 8);
    frame_[offset + 1] = std::byte(value & 0xff);
  }

 private:
  Bytes frame_;
};

constexpr MacAddress kBroadcast{0xff, 0xff, 0xff, 0xff, 0xff, 0xff};

Bytes arp_frame(const MacAddress& mac, std::uint16_t ether_type, std::uint16_t operation, const Ipv4Address& address,
                const MacAddress& target) {
  FrameWriter frame;
  frame.bytes(kBroadcast).bytes(mac).u16(ether_type);
  frame.u16(1).u16(kEtherTypeIpv4).u8(6).u8(4).u16(operation);
  frame.bytes(mac).bytes(address).bytes(target).bytes(address);
  return frame.take();
}

std::uint16_t checksum(ByteView bytes, std::uint32_t sum) {
  for (std::size_t i = 0; i + 1 < bytes.size(); i += 2) {
    sum += (std::to_integer<std::uint32_t>(bytes[i]) << 8) | std::to_integer<std::uint32_t>(bytes[i + 1]);
  }
  while (sum >> 16) sum = (sum & 0xffff) + (sum >> 16);
  return static_cast<std::uint16_t>(~sum);
}

Bytes neighbour_advertisement(const MacAddress& mac, const Ipv6Address& address) {
  constexpr Ipv6Address kAllNodes{0xff, 0x02, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1};
  constexpr MacAddress kAllNodesMac{0x33, 0x33, 0, 0, 0, 1};
  constexpr std::uint16_t kIcmpLength = 32;
  constexpr std::uint8_t kIcmpv6 = 58;
  FrameWriter frame;
  frame.bytes(kAllNodesMac).bytes(mac).u16(kEtherTypeIpv6);
  frame.u16(0x6000).u16(0).u16(kIcmpLength).u8(kIcmpv6).u8(255);
  frame.bytes(address).bytes(kAllNodes);
  const std::size_t icmp = frame.so_far().size();
  frame.u8(136).u8(0).u16(0);               // RFC 4861, 4.4
  frame.u16(0x2000).u16(0).bytes(address);  // override, unsolicited
  frame.u8(2).u8(1).bytes(mac);             // target link-layer address option
  const ByteView whole(frame.so_far());
  // The pseudo header (RFC 8200, 8.1): both addresses, length, next header.
  const std::uint32_t pseudo = static_cast<std::uint16_t>(~checksum(whole.subspan(icmp - 32, 32), 0));
  frame.set_u16(icmp + 2, checksum(whole.subspan(icmp), pseudo + kIcmpLength + kIcmpv6));
  return frame.take();
}

}  // namespace

void AddressLearner::observe(ByteView frame) {
  std::array<std::uint8_t, 2> type{};
  if (!take(frame, 12, type)) return;
  const auto ether_type = static_cast<std::uint16_t>(type[0] << 8 | type[1]);
  Ipv4Address v4;
  Ipv6Address v6;
  if (ether_type == kEtherTypeIpv4 && take(frame, kIpv4Source, v4)) remember(ipv4_, v4);
  if (ether_type == kEtherTypeArp && take(frame, kArpSenderIp, v4)) remember(ipv4_, v4);
  if (ether_type == kEtherTypeIpv6 && take(frame, kIpv6Source, v6)) remember(ipv6_, v6);
}

void AddressLearner::restore(std::vector<Ipv4Address> ipv4, std::vector<Ipv6Address> ipv6) {
  ipv4.resize(std::min(ipv4.size(), kMaxAddresses));
  ipv6.resize(std::min(ipv6.size(), kMaxAddresses));
  ipv4_ = std::move(ipv4);
  ipv6_ = std::move(ipv6);
}

std::vector<Bytes> announcement_frames(const MacAddress& mac, const AddressLearner& addresses) {
  std::vector<Bytes> frames;
  for (const Ipv4Address& address : addresses.ipv4()) {
    frames.push_back(arp_frame(mac, kEtherTypeArp, kArpRequest, address, MacAddress{}));
  }
  for (const Ipv6Address& address : addresses.ipv6()) frames.push_back(neighbour_advertisement(mac, address));
  if (frames.empty()) frames.push_back(arp_frame(mac, kEtherTypeRarp, kRarpRequest, Ipv4Address{}, mac));
  return frames;
}

}  // namespace pollux::vmm
