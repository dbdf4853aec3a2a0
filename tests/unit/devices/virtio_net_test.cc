#include "vmm/devices/virtio/virtio_net.h"

#include <gtest/gtest.h>

#include "tests/unit/devices/fake_guest.h"

namespace pollux::vmm {
namespace {

using namespace testing;

constexpr std::uint32_t kReceive = 0;
constexpr std::uint32_t kTransmit = 1;
constexpr std::size_t kHeader = 12;
constexpr MacAddress kMac{0x52, 0x54, 0, 0x12, 0x34, 0x56};
constexpr std::uint64_t kMergeFeature = feature_bit(15);

Bytes with_header(const Bytes& frame) {
  Bytes packet(kHeader);
  packet.insert(packet.end(), frame.begin(), frame.end());
  return packet;
}

class VirtioNetTest : public ::testing::Test {
 protected:
  std::uint16_t transmit(const Bytes& frame) {
    const std::uint16_t head = driver_.ring(kTransmit).add({driver_.output(with_header(frame))});
    driver_.kick(kTransmit);
    return head;
  }
  Buffer offer_buffer(std::size_t length) {
    const Buffer buffer = driver_.input(length);
    driver_.ring(kReceive).add({buffer});
    return buffer;
  }

  GuestMemory memory_{kGuestBytes};
  CountingLine line_;
  FakeOutput gate_;
  VirtioNet* net_ = new VirtioNet(NicIndex{0}, NicConfig{kMac}, gate_);
  VirtioMmio device_{"nic 0", std::unique_ptr<VirtioFunction>(net_), memory_, line_, nullptr};
  FakeDriver driver_{device_, memory_};
};

TEST_F(VirtioNetTest, ConfigurationHoldsMacAndLink) {
  Bytes mac(6);
  device_.read(0x100, mac);
  EXPECT_EQ(std::memcmp(mac.data(), kMac.data(), 6), 0);
  std::uint16_t status = 0;
  device_.read(0x106, mutable_bytes_of(status));
  EXPECT_EQ(status, 1);
}

TEST_F(VirtioNetTest, TransmitsWithoutTheHeader) {
  driver_.start();
  const Bytes frame = pattern(1514, 1);
  const std::uint16_t head = transmit(frame);
  ASSERT_EQ(gate_.frames().size(), 1u);
  EXPECT_EQ(gate_.frames()[0], frame);
  const auto used = driver_.ring(kTransmit).take_used();
  ASSERT_TRUE(used);
  EXPECT_EQ(used->head, head);
  EXPECT_EQ(used->written, 0u);
  EXPECT_EQ(net_->counters().transmitted, 1u);
}

TEST_F(VirtioNetTest, HeaderAndFrameMayBeInManyBuffers) {
  driver_.start();
  const Bytes packet = with_header(pattern(100, 2));
  const ByteView view(packet);
  driver_.ring(kTransmit).add(
      {driver_.output(view.first(5)), driver_.output(view.subspan(5, 20)), driver_.output(view.subspan(25))});
  driver_.kick(kTransmit);
  ASSERT_EQ(gate_.frames().size(), 1u);
  EXPECT_EQ(gate_.frames()[0], pattern(100, 2));
}

TEST_F(VirtioNetTest, FrameWithoutRoomStaysAndGoesLater) {
  driver_.start();
  gate_.on_room([this] { device_.notify(VirtioNet::kTransmitQueue); });
  gate_.set_room(1);
  transmit(pattern(60, 1));
  transmit(pattern(60, 2));
  transmit(pattern(60, 3));
  EXPECT_EQ(gate_.frames().size(), 1u);
  EXPECT_TRUE(driver_.ring(kTransmit).take_used());
  EXPECT_FALSE(driver_.ring(kTransmit).take_used());
  gate_.set_room(100);
  ASSERT_EQ(gate_.frames().size(), 3u);
  EXPECT_EQ(gate_.frames()[1], pattern(60, 2));
  EXPECT_EQ(gate_.frames()[2], pattern(60, 3));
  EXPECT_TRUE(driver_.ring(kTransmit).take_used());
  EXPECT_TRUE(driver_.ring(kTransmit).take_used());
}

TEST_F(VirtioNetTest, FrameWithoutRoomIsSentByTheRestoredDevice) {
  driver_.start();
  gate_.set_room(0);
  transmit(pattern(60, 1));
  SavedDevice saved(device_);
  FakeOutput gate;
  CountingLine line;
  VirtioMmio restored("nic 0", std::make_unique<VirtioNet>(NicIndex{0}, NicConfig{kMac}, gate), memory_, line,
                      nullptr);
  restored.restore(saved.state().asReader());
  restored.resume_after_restore();
  ASSERT_EQ(gate.frames().size(), 1u);
  EXPECT_EQ(gate.frames()[0], pattern(60, 1));
}

TEST_F(VirtioNetTest, OddFramesAreDroppedAndCounted) {
  driver_.start();
  transmit(pattern(13, 1));
  transmit(pattern(kMaxFrame + 1, 1));
  transmit(pattern(kMaxFrame, 1));
  EXPECT_EQ(gate_.frames().size(), 1u);
  EXPECT_EQ(net_->counters().transmit_dropped, 2u);
  for (int i = 0; i < 3; ++i) EXPECT_TRUE(driver_.ring(kTransmit).take_used());
}

TEST_F(VirtioNetTest, TransmitViolations) {
  driver_.start();
  driver_.ring(kTransmit).add({driver_.output(Bytes(11))});
  driver_.kick(kTransmit);
  EXPECT_TRUE(driver_.needs_reset());
  driver_.start();
  EXPECT_FALSE(driver_.needs_reset());
  driver_.ring(kTransmit).add({driver_.output(Bytes(80)), driver_.input(8)});
  driver_.kick(kTransmit);
  EXPECT_TRUE(driver_.needs_reset());
  EXPECT_TRUE(gate_.frames().empty());
}

TEST_F(VirtioNetTest, ReceivesIntoABuffer) {
  driver_.start();
  const Buffer buffer = offer_buffer(2048);
  const Bytes frame = pattern(1000, 3);
  net_->deliver(frame);
  const auto used = driver_.ring(kReceive).take_used();
  ASSERT_TRUE(used);
  EXPECT_EQ(used->written, kHeader + frame.size());
  Bytes expected(kHeader);
  expected[10] = std::byte{1};  // num_buffers
  expected.insert(expected.end(), frame.begin(), frame.end());
  expected.resize(2048);
  EXPECT_EQ(driver_.contents(buffer), expected);
  EXPECT_EQ(net_->counters().received, 1u);
}

TEST_F(VirtioNetTest, FramesWaitForBuffersInOrder) {
  driver_.start();
  net_->deliver(pattern(60, 1));
  net_->deliver(pattern(60, 2));
  EXPECT_FALSE(driver_.ring(kReceive).take_used());
  const Buffer first = offer_buffer(1600);
  const Buffer second = offer_buffer(1600);
  driver_.kick(kReceive);
  EXPECT_TRUE(driver_.ring(kReceive).take_used());
  EXPECT_TRUE(driver_.ring(kReceive).take_used());
  EXPECT_EQ(driver_.contents(first)[kHeader], pattern(60, 1)[0]);
  EXPECT_EQ(driver_.contents(second)[kHeader], pattern(60, 2)[0]);
}

TEST_F(VirtioNetTest, WaitingFramesAreBounded) {
  driver_.start();
  for (std::size_t i = 0; i < VirtioNet::kMaxWaitingFrames + 10; ++i) net_->deliver(pattern(60, 1));
  EXPECT_EQ(net_->counters().receive_dropped, 10u);
}

TEST_F(VirtioNetTest, FramesForAStoppedDriverAreDropped) {
  net_->deliver(pattern(60, 1));
  EXPECT_EQ(net_->counters().receive_dropped, 1u);
  driver_.start();
  offer_buffer(1600);
  driver_.kick(kReceive);
  EXPECT_FALSE(driver_.ring(kReceive).take_used());
}

TEST_F(VirtioNetTest, FrameLargerThanTheBufferIsDroppedAndTheBufferKept) {
  driver_.start();
  offer_buffer(100);
  net_->deliver(pattern(1000, 1));
  net_->deliver(pattern(kMaxFrame + 1, 1));
  EXPECT_EQ(net_->counters().receive_dropped, 2u);
  EXPECT_FALSE(driver_.ring(kReceive).take_used());
  net_->deliver(pattern(60, 2));
  EXPECT_TRUE(driver_.ring(kReceive).take_used());
}

TEST_F(VirtioNetTest, MergesReceiveBuffers) {
  driver_.start(kMergeFeature);
  const Bytes frame = pattern(2500, 5);
  const Buffer first = offer_buffer(1024);
  const Buffer second = offer_buffer(1024);
  net_->deliver(frame);
  EXPECT_FALSE(driver_.ring(kReceive).take_used());  // not enough: waits, and takes none
  const Buffer third = offer_buffer(1024);
  driver_.kick(kReceive);
  Bytes received;
  for (const Buffer& buffer : {first, second, third}) {
    const auto used = driver_.ring(kReceive).take_used();
    ASSERT_TRUE(used);
    const Bytes bytes = driver_.contents(buffer);
    received.insert(received.end(), bytes.begin(), bytes.begin() + used->written);
  }
  EXPECT_EQ(received[10], std::byte{3});
  EXPECT_EQ(Bytes(received.begin() + kHeader, received.end()), frame);
}

TEST_F(VirtioNetTest, FrameThatTheWholeRingCannotHoldIsDropped) {
  driver_.start(kMergeFeature, 4);
  for (int i = 0; i < 4; ++i) offer_buffer(100);
  net_->deliver(pattern(1000, 1));
  EXPECT_EQ(net_->counters().receive_dropped, 1u);
  net_->deliver(pattern(60, 1));
  EXPECT_TRUE(driver_.ring(kReceive).take_used());
}

TEST_F(VirtioNetTest, ReceiveViolations) {
  driver_.start();
  driver_.ring(kReceive).add({driver_.output(Bytes(2048))});
  net_->deliver(pattern(60, 1));
  EXPECT_TRUE(driver_.needs_reset());
  driver_.start(kMergeFeature);
  offer_buffer(11);
  net_->deliver(pattern(60, 1));
  EXPECT_TRUE(driver_.needs_reset());
}

TEST_F(VirtioNetTest, AnnouncesTheAddressesItSawAlsoAfterARestore) {
  driver_.start();
  Bytes arp(60);
  arp[12] = std::byte{0x08};
  arp[13] = std::byte{0x06};
  for (std::size_t i = 0; i < 4; ++i) arp[28 + i] = static_cast<std::byte>(10 + i);
  transmit(arp);
  const auto frames = net_->announcement();
  ASSERT_EQ(frames.size(), 1u);
  SavedDevice saved(device_);
  auto* net = new VirtioNet(NicIndex{0}, NicConfig{kMac}, gate_);
  VirtioMmio restored("nic 0", std::unique_ptr<VirtioFunction>(net), memory_, line_, nullptr);
  restored.restore(saved.state().asReader());
  EXPECT_EQ(net->announcement(), frames);
  saved.state().getFunction().getNet().initIpv4(1).init(0, 3);
  EXPECT_THROW(restored.restore(saved.state().asReader()), Error);
}

TEST(VirtioNetLoopTest, TrafficBothWaysWhileTheMachinePauses) {
  constexpr unsigned kFrames = 400;
  constexpr std::uint16_t kSize = 128;
  GuestMemory memory(kGuestBytes);
  CountingLine line;
  FakeOutput gate;
  EventLoop loop("io");
  auto* net = new VirtioNet(NicIndex{0}, NicConfig{kMac}, gate);
  VirtioMmio device("nic 0", std::unique_ptr<VirtioFunction>(net), memory, line, &loop);
  FakeDriver driver(device, memory);
  driver.start(kEventIndexFeature, kSize);
  gate.on_room([&] { device.notify(VirtioNet::kTransmitQueue); });
  const Buffer packet = driver.output(with_header(pattern(200, 1)));
  for (unsigned i = 0; i < kSize; ++i) driver.ring(kReceive).add({driver.input(512)});

  std::atomic<bool> done = false;
  std::thread network([&] {
    for (unsigned i = 0; i < kFrames; ++i) {
      loop.post([&] { net->deliver(pattern(100, 1)); });
      gate.set_room(i % 5);
      std::this_thread::sleep_for(std::chrono::microseconds(50));
    }
    gate.set_room(~std::size_t{0});
    done = true;
  });
  std::thread pauser([&] {
    while (!done) {
      device.freeze();
      SavedDevice saved(device, SavedDevice::AlreadyFrozen{});
      device.thaw();
      std::this_thread::yield();
    }
  });
  unsigned sent = 0;
  unsigned returned = 0;
  unsigned received = 0;
  EXPECT_TRUE(eventually([&] {
    while (sent < kFrames && sent - returned < kSize) {
      driver.ring(kTransmit).add({packet});
      driver.kick(kTransmit);
      ++sent;
    }
    while (driver.ring(kTransmit).take_used()) ++returned;
    while (const auto used = driver.ring(kReceive).take_used()) {
      driver.ring(kReceive).make_available(used->head);
      driver.kick(kReceive);
      ++received;
    }
    return done && returned == kFrames && received == kFrames;
  })) << sent
      << " sent, " << returned << " returned, " << received << " received";
  network.join();
  pauser.join();
  EXPECT_EQ(gate.frames().size(), kFrames);
  device.retire();
  loop.stop();
}

}  // namespace
}  // namespace pollux::vmm
