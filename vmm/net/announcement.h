// Telling a network that a NIC has moved to another host.
//
// After a failover the switches still send the guest's frames to the dead host. A gratuitous ARP (RFC 5227, 3) and an
// unsolicited neighbour advertisement (RFC 4861, 7.2.6) for each of the guest's addresses correct them at once. The
// VMM knows those addresses only by watching what the guest sends, so the learner is part of the NIC's saved state.
#pragma once

#include <array>
#include <compare>
#include <cstdint>
#include <vector>

#include "base/bytes.h"
#include "vmm/net/tap.h"

namespace pollux::vmm {

using Ipv4Address = std::array<std::uint8_t, 4>;
using Ipv6Address = std::array<std::uint8_t, 16>;

// The source addresses of one NIC's own frames. Bounded: the oldest is forgotten. Not thread safe.
class AddressLearner {
 public:
  static constexpr std::size_t kMaxAddresses = 8;  // of each family

  // Looks at a frame the guest sends: ARP sender, IPv4 source, IPv6 source. Anything malformed is ignored.
  void observe(ByteView frame);

  [[nodiscard]] const std::vector<Ipv4Address>& ipv4() const { return ipv4_; }
  [[nodiscard]] const std::vector<Ipv6Address>& ipv6() const { return ipv6_; }
  void restore(std::vector<Ipv4Address> ipv4, std::vector<Ipv6Address> ipv6);

 private:
  std::vector<Ipv4Address> ipv4_;
  std::vector<Ipv6Address> ipv6_;
};

// The frames to send: one per address, or a RARP (as other hypervisors announce a migrated NIC) when none is known,
// which teaches the switches all the same.
[[nodiscard]] std::vector<Bytes> announcement_frames(const MacAddress& mac, const AddressLearner& addresses);

}  // namespace pollux::vmm
