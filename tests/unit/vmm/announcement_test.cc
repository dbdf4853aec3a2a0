// What a NIC that has moved tells its network, byte by byte, and whose addresses it knows for that.
#include "vmm/net/announcement.h"

#include <arpa/inet.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <string>

namespace pollux::vmm {
namespace {

constexpr MacAddress kMac{0x52, 0x54, 0x00, 0x12, 0x34, 0x56};
constexpr std::size_t kSmallestFrame = 60;  // IEEE 802.3, without the checksum

Bytes from_hex(const std::string& text) {
  Bytes bytes;
  std::string digits;
  std::copy_if(text.begin(), text.end(), std::back_inserter(digits), [](char c) { return c != ' '; });
  for (std::size_t i = 0; i + 1 < digits.size(); i += 2) {
    bytes.push_back(static_cast<std::byte>(std::stoul(digits.substr(i, 2), nullptr, 16)));
  }
  return bytes;
}

Bytes padded(Bytes frame) {
  frame.resize(std::max(frame.size(), kSmallestFrame));
  return frame;
}

Ipv6Address ipv6(const char* text) {
  Ipv6Address address{};
  EXPECT_EQ(::inet_pton(AF_INET6, text, address.data()), 1);
  return address;
}

// One's complement sum of 16-bit words (RFC 1071).
std::uint16_t sum_of(const Bytes& bytes) {
  std::uint32_t sum = 0;
  for (std::size_t i = 0; i < bytes.size(); i += 2) {
    sum += std::to_integer<std::uint32_t>(bytes[i]) << 8;
    if (i + 1 < bytes.size()) sum += std::to_integer<std::uint32_t>(bytes[i + 1]);
  }
  while (sum >> 16 != 0) sum = (sum & 0xffff) + (sum >> 16);
  return static_cast<std::uint16_t>(sum);
}

TEST(Announcement, AGratuitousArpForAnIpv4Address) {
  AddressLearner addresses;
  addresses.restore({{10, 77, 0, 10}}, {});
  const auto frames = announcement_frames(kMac, addresses);
  ASSERT_EQ(frames.size(), 1u);
  EXPECT_EQ(frames[0], padded(from_hex("ffffffffffff 525400123456 0806"        // to all
                                       "0001 0800 06 04 0001"                  // Ethernet, IPv4, a request
                                       "525400123456 0a4d000a"                 // the sender
                                       "000000000000 0a4d000a")));             // asks for itself
}

TEST(Announcement, AnUnsolicitedNeighbourAdvertisementForAnIpv6Address) {
  AddressLearner addresses;
  addresses.restore({}, {ipv6("fe80::5054:ff:fe12:3456")});
  const auto frames = announcement_frames(kMac, addresses);
  ASSERT_EQ(frames.size(), 1u);
  Bytes frame = frames[0];
  constexpr std::size_t kChecksum = 14 + 40 + 2;
  ASSERT_EQ(frame.size(), 14u + 40 + 32);

  // The pseudo header (RFC 8200, 8.1) and the message with its checksum add up to all ones.
  Bytes summed(frame.begin() + 14 + 8, frame.begin() + 14 + 40);  // both addresses
  const Bytes rest = from_hex("00000020 0000003a");                // length, next header
  summed.insert(summed.end(), rest.begin(), rest.end());
  summed.insert(summed.end(), frame.begin() + 14 + 40, frame.end());
  EXPECT_EQ(sum_of(summed), 0xffff);

  frame[kChecksum] = frame[kChecksum + 1] = std::byte{0};
  EXPECT_EQ(frame, from_hex("333300000001 525400123456 86dd"                  // to all nodes
                            "60000000 0020 3a ff"                              // ICMPv6, hop limit 255 (RFC 4861, 7.1.2)
                            "fe80000000000000 505400fffe123456"
                            "ff02000000000000 0000000000000001"
                            "88 00 0000 20000000"                              // override, neither solicited nor a router
                            "fe80000000000000 505400fffe123456"                // the target
                            "02 01 525400123456"));                            // its link-layer address
}

TEST(Announcement, OneFrameForEachAddress) {
  AddressLearner addresses;
  addresses.restore({{10, 0, 0, 1}, {10, 0, 0, 2}}, {ipv6("2001:db8::1"), ipv6("fe80::1")});
  EXPECT_EQ(announcement_frames(kMac, addresses).size(), 4u);
}

TEST(Announcement, ARarpWhenNoAddressIsKnown) {
  const auto frames = announcement_frames(kMac, AddressLearner{});
  ASSERT_EQ(frames.size(), 1u);
  EXPECT_EQ(frames[0], padded(from_hex("ffffffffffff 525400123456 8035"
                                       "0001 0800 06 04 0003"
                                       "525400123456 00000000 525400123456 00000000")));
}

TEST(AddressLearner, LearnsTheSourcesOfWhatTheGuestSends) {
  AddressLearner addresses;
  addresses.observe(from_hex("ffffffffffff 525400123456 0806 0001 0800 06 04 0001 525400123456 0a000001"));
  addresses.observe(from_hex("0200000000 01 525400123456 0800 45000014 00000000 40060000 0a000002 08080808"));
  addresses.observe(from_hex("0200000000 01 525400123456 86dd 60000000 0000 3a ff fe80000000000000 0000000000000007"
                             "ff02000000000000 0000000000000001"));
  EXPECT_EQ(addresses.ipv4(), (std::vector<Ipv4Address>{{10, 0, 0, 1}, {10, 0, 0, 2}}));
  EXPECT_EQ(addresses.ipv6(), std::vector<Ipv6Address>{ipv6("fe80::7")});
}

TEST(AddressLearner, IgnoresFramesThatAreCutAndAddressesThatAreNone) {
  AddressLearner addresses;
  const Bytes arp = from_hex("ffffffffffff 525400123456 0806 0001 0800 06 04 0001 525400123456 0a000001");
  for (std::size_t length = 0; length < arp.size(); ++length) addresses.observe(ByteView(arp).first(length));
  addresses.observe(from_hex("ffffffffffff 525400123456 0806 0001 0800 06 04 0001 525400123456 00000000"));  // RFC 5227, 2.1.1
  EXPECT_TRUE(addresses.ipv4().empty());
}

TEST(AddressLearner, ForgetsTheOldest) {
  AddressLearner addresses;
  for (std::uint8_t i = 1; i <= AddressLearner::kMaxAddresses + 1; ++i) {
    Bytes arp = from_hex("ffffffffffff 525400123456 0806 0001 0800 06 04 0001 525400123456 0a000000");
    arp.back() = std::byte{i};
    addresses.observe(arp);
  }
  ASSERT_EQ(addresses.ipv4().size(), AddressLearner::kMaxAddresses);
  EXPECT_EQ(addresses.ipv4().front(), (Ipv4Address{10, 0, 0, 2}));
}

}  // namespace
}  // namespace pollux::vmm
