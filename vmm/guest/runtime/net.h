// The network: virtio-net (virtio 1.2, 5.1) without offloads, and as much of ARP, IPv4, ICMP and UDP as a
// server at a fixed address needs. Frames may be lost, and after a promotion sent twice: what matters is
// repeated by whoever asks.
#pragma once

#include <cstddef>
#include <cstdint>

#include "vmm/guest/runtime/virtio.h"

namespace pollux::guest {

struct MacAddress {
  std::uint8_t bytes[6] = {};
};

class NetDevice {
 public:
  static constexpr std::size_t kMaxFrame = 1514;
  static constexpr std::uint16_t kBuffers = 128;  // for either direction

  explicit NetDevice(unsigned index);

  [[nodiscard]] const MacAddress& mac() const { return mac_; }

  // An Ethernet frame; copied. False: it is too long, or kBuffers wait to be sent; the frame is lost.
  bool send(const std::uint8_t* frame, std::size_t bytes);

  struct Frame {
    const std::uint8_t* data = nullptr;
    std::size_t bytes = 0;
    std::uint16_t buffer = 0;
  };
  // A received frame, which stays until release().
  [[nodiscard]] bool receive(Frame& frame);
  void release(const Frame& frame);
  // Until a frame may have been received.
  void wait();
  // Tells the device what was sent and released since; wait() does so too.
  void announce();
  // Until every frame sent has left this machine's memory: before a power-off.
  void flush();

 private:
  void take_sent();

  static constexpr std::size_t kHeader = 12;  // struct virtio_net_hdr
  static constexpr std::size_t kBufferBytes = 2048;

  VirtioDevice device_;
  Virtqueue receive_;
  Virtqueue transmit_;
  MacAddress mac_;
  std::uint8_t* receive_buffers_;
  std::uint8_t* transmit_buffers_;
  std::uint16_t free_[kBuffers];
  unsigned free_count_ = 0;
};

// Host order: 192.168.0.1 is 0xc0a80001.
struct Ipv4Address {
  std::uint32_t value = 0;
  bool operator==(const Ipv4Address&) const = default;
};
// Dotted decimal; panics for anything else.
struct Text;
Ipv4Address ipv4_address(Text text);

struct UdpEndpoint {
  MacAddress mac;
  Ipv4Address address;
  std::uint16_t port = 0;
};

struct Datagram {
  UdpEndpoint from;
  std::uint16_t to_port = 0;
  const std::uint8_t* payload = nullptr;  // until the next receive() or poll()
  std::size_t bytes = 0;
};

// One address on one NIC. Announces itself when it is made, answers ARP requests and pings as it receives.
class UdpHost {
 public:
  static constexpr std::size_t kMaxPayload = 1472;

  UdpHost(NetDevice& nic, Ipv4Address address);

  // Waits for a datagram. Those with a wrong checksum and fragments are dropped.
  Datagram receive();
  // The next one that has come; false: none has.
  [[nodiscard]] bool poll(Datagram& datagram);
  // False: too long, or no room.
  bool send(const UdpEndpoint& to, std::uint16_t from_port, const void* payload, std::size_t bytes);

 private:
  [[nodiscard]] bool parse(const NetDevice::Frame& frame, Datagram& datagram);
  [[nodiscard]] bool parse_ipv4(const NetDevice::Frame& frame, Datagram& datagram);
  void announce();
  void answer_arp(const NetDevice::Frame& frame);
  void answer_ping(const NetDevice::Frame& frame, std::size_t ip_header, std::size_t ip_bytes);
  void write_headers(std::uint8_t* frame, const MacAddress& to_mac, Ipv4Address to, std::uint8_t protocol,
                     std::size_t payload);

  NetDevice& nic_;
  Ipv4Address address_;
  std::uint16_t next_id_ = 0;
  NetDevice::Frame held_;
  bool holds_ = false;
};

}  // namespace pollux::guest
