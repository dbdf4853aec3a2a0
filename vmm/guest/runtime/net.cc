#include "vmm/guest/runtime/net.h"

#include "vmm/guest/runtime/guest.h"

namespace pollux::guest {
namespace {

constexpr std::uint64_t kMacFeature = std::uint64_t{1} << 5;

constexpr std::size_t kEthernet = 14, kIpv4 = 20, kUdp = 8, kArp = 28, kIcmp = 8;
constexpr std::uint16_t kTypeIpv4 = 0x0800, kTypeArp = 0x0806;
// The first eight bytes of an ARP request.
constexpr std::uint64_t kEthernetIpv4Request = 0x0001'0800'0604'0001;
constexpr std::uint8_t kProtocolIcmp = 1, kProtocolUdp = 17;

std::uint16_t load16(const std::uint8_t* at) { return static_cast<std::uint16_t>(at[0] << 8 | at[1]); }
std::uint32_t load32(const std::uint8_t* at) { return std::uint32_t{load16(at)} << 16 | load16(at + 2); }
void store16(std::uint8_t* at, std::uint16_t value) {
  at[0] = static_cast<std::uint8_t>(value >> 8);
  at[1] = static_cast<std::uint8_t>(value);
}
void store32(std::uint8_t* at, std::uint32_t value) {
  store16(at, static_cast<std::uint16_t>(value >> 16));
  store16(at + 2, static_cast<std::uint16_t>(value));
}
void store_mac(std::uint8_t* at, const MacAddress& mac) { memcpy(at, mac.bytes, sizeof mac.bytes); }
MacAddress load_mac(const std::uint8_t* at) {
  MacAddress mac;
  memcpy(mac.bytes, at, sizeof mac.bytes);
  return mac;
}

// RFC 1071. Zero over data that contains its own right checksum.
std::uint16_t checksum(const std::uint8_t* data, std::size_t bytes, std::uint32_t sum = 0) {
  for (; bytes >= 2; bytes -= 2, data += 2) sum += load16(data);
  if (bytes == 1) sum += std::uint32_t{*data} << 8;
  sum = (sum & 0xffff) + (sum >> 16);
  sum = (sum & 0xffff) + (sum >> 16);
  return static_cast<std::uint16_t>(~sum);
}

std::uint32_t pseudo_header(const std::uint8_t* ip, std::size_t udp_bytes) {
  std::uint32_t sum = kProtocolUdp + static_cast<std::uint32_t>(udp_bytes);
  for (std::size_t i = 12; i < kIpv4; i += 2) sum += load16(ip + i);
  return sum;
}

}  // namespace

NetDevice::NetDevice(unsigned index)
    : device_(VirtioType::kNet, index, kMacFeature),
      receive_(device_, 0, kBuffers),
      transmit_(device_, 1, kBuffers) {
  for (std::size_t i = 0; i < sizeof mac_.bytes; ++i) mac_.bytes[i] = device_.config<std::uint8_t>(i);
  receive_buffers_ = static_cast<std::uint8_t*>(allocate_pages(kBuffers * kBufferBytes));
  transmit_buffers_ = static_cast<std::uint8_t*>(allocate_pages(kBuffers * kBufferBytes));
  for (std::uint16_t i = 0; i < kBuffers; ++i) {
    receive_.describe(i, receive_buffers_ + i * kBufferBytes, kBufferBytes, Virtqueue::kDeviceWrites);
    receive_.offer(i);
    free_[free_count_++] = i;
  }
  device_.start();
  receive_.announce();
}

void NetDevice::take_sent() {
  for (Virtqueue::Used used{}; transmit_.take(used);) {
    require(used.head < kBuffers && free_count_ < kBuffers, "NIC sent no frame of ours");
    free_[free_count_++] = static_cast<std::uint16_t>(used.head);
  }
}

bool NetDevice::send(const std::uint8_t* frame, std::size_t bytes) {
  take_sent();
  if (bytes > kMaxFrame || free_count_ == 0) return false;
  const std::uint16_t buffer = free_[--free_count_];
  std::uint8_t* at = transmit_buffers_ + buffer * kBufferBytes;
  memset(at, 0, kHeader);
  memcpy(at + kHeader, frame, bytes);
  transmit_.describe(buffer, at, static_cast<std::uint32_t>(kHeader + bytes), 0);
  transmit_.offer(buffer);
  return true;
}

bool NetDevice::receive(Frame& frame) {
  for (Virtqueue::Used used{}; receive_.take(used);) {
    require(used.head < kBuffers && used.written <= kBufferBytes, "NIC received into no buffer of ours");
    const auto buffer = static_cast<std::uint16_t>(used.head);
    if (used.written >= kHeader) {
      frame = {receive_buffers_ + buffer * kBufferBytes + kHeader, used.written - kHeader, buffer};
      return true;
    }
    receive_.offer(buffer);
  }
  return false;
}

void NetDevice::release(const Frame& frame) { receive_.offer(frame.buffer); }

void NetDevice::announce() {
  transmit_.announce();
  receive_.announce();
}

void NetDevice::wait() {
  announce();
  (void)wait_for_events(device_.event());
}

void NetDevice::flush() {
  for (take_sent(); free_count_ < kBuffers; take_sent()) wait();
}

Ipv4Address ipv4_address(Text text) {
  std::uint32_t value = 0, part = 0, parts = 1, digits = 0;
  for (std::size_t i = 0; i < text.size; ++i) {
    const char c = text.data[i];
    if (c == '.') {
      require(digits > 0, "not an IPv4 address");
      value = value << 8 | part;
      part = digits = 0;
      ++parts;
    } else {
      require(c >= '0' && c <= '9', "not an IPv4 address");
      part = part * 10 + static_cast<std::uint32_t>(c - '0');
      ++digits;
      require(part <= 255, "not an IPv4 address");
    }
  }
  require(parts == 4 && digits > 0, "not an IPv4 address");
  return {value << 8 | part};
}

Datagram UdpHost::receive() {
  Datagram datagram;
  while (!poll(datagram)) nic_.wait();
  return datagram;
}

bool UdpHost::poll(Datagram& datagram) {
  if (holds_) nic_.release(held_);
  holds_ = false;
  for (NetDevice::Frame frame; nic_.receive(frame);) {
    if (parse(frame, datagram)) {
      held_ = frame;
      holds_ = true;
      return true;
    }
    nic_.release(frame);
  }
  return false;
}

bool UdpHost::parse(const NetDevice::Frame& frame, Datagram& datagram) {
  if (frame.bytes < kEthernet) return false;
  switch (load16(frame.data + 12)) {
    case kTypeArp: answer_arp(frame); return false;
    case kTypeIpv4: return parse_ipv4(frame, datagram);
    default: return false;
  }
}

UdpHost::UdpHost(NetDevice& nic, Ipv4Address address) : nic_(nic), address_(address) { announce(); }

// RFC 5227, 2.3: switches learn where this address is now, whoever had it before.
void UdpHost::announce() {
  std::uint8_t frame[kEthernet + kArp] = {};
  memset(frame, 0xff, 6);
  store_mac(frame + 6, nic_.mac());
  store16(frame + 12, kTypeArp);
  std::uint8_t* out = frame + kEthernet;
  store32(out, static_cast<std::uint32_t>(kEthernetIpv4Request >> 32));
  store32(out + 4, static_cast<std::uint32_t>(kEthernetIpv4Request));
  store_mac(out + 8, nic_.mac());
  store32(out + 14, address_.value);
  store32(out + 24, address_.value);
  nic_.send(frame, sizeof frame);
}

// RFC 826
void UdpHost::answer_arp(const NetDevice::Frame& frame) {
  if (frame.bytes < kEthernet + kArp) return;
  const std::uint8_t* arp = frame.data + kEthernet;
  const std::uint64_t kind = std::uint64_t{load32(arp)} << 32 | load32(arp + 4);
  if (kind != kEthernetIpv4Request || load32(arp + 24) != address_.value) return;
  std::uint8_t reply[kEthernet + kArp];
  memcpy(reply, arp + 8, 6);
  store_mac(reply + 6, nic_.mac());
  store16(reply + 12, kTypeArp);
  std::uint8_t* out = reply + kEthernet;
  memcpy(out, arp, 6);
  store16(out + 6, 2);
  store_mac(out + 8, nic_.mac());
  store32(out + 14, address_.value);
  memcpy(out + 18, arp + 8, 10);
  nic_.send(reply, sizeof reply);
}

// RFC 791, RFC 768
bool UdpHost::parse_ipv4(const NetDevice::Frame& frame, Datagram& datagram) {
  const std::uint8_t* ip = frame.data + kEthernet;
  const std::size_t room = frame.bytes - kEthernet;
  if (room < kIpv4 || ip[0] >> 4 != 4) return false;
  const std::size_t header = (ip[0] & 15u) * 4, total = load16(ip + 2);
  if (header < kIpv4 || total < header || total > room || checksum(ip, header) != 0) return false;
  constexpr std::uint16_t kFragment = 0x3fff;  // more to come, or an offset
  if ((load16(ip + 6) & kFragment) != 0 || load32(ip + 16) != address_.value) return false;
  if (ip[9] == kProtocolIcmp) answer_ping(frame, header, total);
  if (ip[9] != kProtocolUdp || total < header + kUdp) return false;
  const std::uint8_t* udp = ip + header;
  const std::size_t bytes = load16(udp + 4);
  if (bytes < kUdp || bytes > total - header) return false;
  if (load16(udp + 6) != 0 && checksum(udp, bytes, pseudo_header(ip, bytes)) != 0) return false;
  datagram.from = {load_mac(frame.data + 6), {load32(ip + 12)}, load16(udp)};
  datagram.to_port = load16(udp + 2);
  datagram.payload = udp + kUdp;
  datagram.bytes = bytes - kUdp;
  return true;
}

// RFC 792: echo.
void UdpHost::answer_ping(const NetDevice::Frame& frame, std::size_t ip_header, std::size_t ip_bytes) {
  const std::uint8_t* ip = frame.data + kEthernet;
  const std::uint8_t* icmp = ip + ip_header;
  const std::size_t bytes = ip_bytes - ip_header;
  if (bytes < kIcmp || icmp[0] != 8 || icmp[1] != 0 || checksum(icmp, bytes) != 0) return;
  if (kEthernet + kIpv4 + bytes > NetDevice::kMaxFrame) return;
  std::uint8_t reply[NetDevice::kMaxFrame];
  write_headers(reply, load_mac(frame.data + 6), {load32(ip + 12)}, kProtocolIcmp, bytes);
  std::uint8_t* out = reply + kEthernet + kIpv4;
  memcpy(out, icmp, bytes);
  out[0] = 0;
  store16(out + 2, 0);
  store16(out + 2, checksum(out, bytes));
  nic_.send(reply, kEthernet + kIpv4 + bytes);
}

void UdpHost::write_headers(std::uint8_t* frame, const MacAddress& to_mac, Ipv4Address to,
                            std::uint8_t protocol, std::size_t payload) {
  store_mac(frame, to_mac);
  store_mac(frame + 6, nic_.mac());
  store16(frame + 12, kTypeIpv4);
  std::uint8_t* ip = frame + kEthernet;
  ip[0] = 0x45;
  ip[1] = 0;
  store16(ip + 2, static_cast<std::uint16_t>(kIpv4 + payload));
  store16(ip + 4, next_id_++);
  store16(ip + 6, 0x4000);  // not to be fragmented
  ip[8] = 64;
  ip[9] = protocol;
  store16(ip + 10, 0);
  store32(ip + 12, address_.value);
  store32(ip + 16, to.value);
  store16(ip + 10, checksum(ip, kIpv4));
}

bool UdpHost::send(const UdpEndpoint& to, std::uint16_t from_port, const void* payload, std::size_t bytes) {
  if (bytes > kMaxPayload) return false;
  std::uint8_t frame[NetDevice::kMaxFrame];
  write_headers(frame, to.mac, to.address, kProtocolUdp, kUdp + bytes);
  std::uint8_t* udp = frame + kEthernet + kIpv4;
  store16(udp, from_port);
  store16(udp + 2, to.port);
  store16(udp + 4, static_cast<std::uint16_t>(kUdp + bytes));
  store16(udp + 6, 0);
  memcpy(udp + kUdp, payload, bytes);
  const std::uint16_t sum = checksum(udp, kUdp + bytes, pseudo_header(frame + kEthernet, kUdp + bytes));
  store16(udp + 6, sum == 0 ? std::uint16_t{0xffff} : sum);
  return nic_.send(frame, kEthernet + kIpv4 + kUdp + bytes);
}

}  // namespace pollux::guest
