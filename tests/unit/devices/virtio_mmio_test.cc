#include "vmm/devices/virtio/virtio_mmio.h"

#include <gtest/gtest.h>

#include "tests/unit/devices/fake_guest.h"
#include "vmm/devices/virtio/virtio_entropy.h"

namespace pollux::vmm {
namespace {

using namespace testing;

constexpr std::uint32_t kRunning = 1 | 2 | 4 | 8;
constexpr std::uint32_t kNeedsReset = 64;

class VirtioMmioTest : public ::testing::Test {
 protected:
  GuestMemory memory_{kGuestBytes};
  CountingLine line_;
  FakeInput input_;
  VirtioMmio device_{"rng", std::make_unique<VirtioEntropy>(input_), memory_, line_, nullptr};
  FakeDriver driver_{device_, memory_};
};

TEST_F(VirtioMmioTest, IdentifiesItself) {
  EXPECT_EQ(driver_.get(0x000), 0x74726976u);
  EXPECT_EQ(driver_.get(0x004), 2u);
  EXPECT_EQ(driver_.get(0x008), 4u);
  EXPECT_NE(driver_.get(0x00c), 0u);
  EXPECT_EQ(driver_.get(0x0fc), 0u);
  EXPECT_EQ(driver_.get(0x0b0), ~0u);  // no shared memory
  EXPECT_EQ(driver_.get(0x070), 0u);
}

TEST_F(VirtioMmioTest, OffersItsFeaturesInTwoBanks) {
  EXPECT_EQ(driver_.offered(), kVersion1Feature | kEventIndexFeature | kIndirectFeature);
  driver_.set(0x014, 2);
  EXPECT_EQ(driver_.get(0x010), 0u);
}

TEST_F(VirtioMmioTest, OddAccessesReadZeroAndWriteNothing) {
  for (const std::size_t width : {1, 2, 8}) {
    Bytes value(width, std::byte{0xff});
    device_.read(0x000, value);
    EXPECT_EQ(value, Bytes(width)) << width;
  }
  std::uint32_t value = ~0u;
  device_.read(0x002, mutable_bytes_of(value));
  EXPECT_EQ(value, 0u);
  device_.write(0x070, Bytes(1, std::byte{1}));
  device_.write(0x070, Bytes(8, std::byte{1}));
  device_.write(0x071, Bytes(4, std::byte{1}));
  EXPECT_EQ(driver_.status(), 0u);
  for (const std::uint64_t offset : {0x100, 0x1fc, 0x200, 0x10000})
    EXPECT_EQ(driver_.get(offset), 0u) << offset;
}

TEST_F(VirtioMmioTest, ReachesDriverOk) {
  driver_.start();
  EXPECT_EQ(driver_.status(), kRunning);
  driver_.set(0x030, 0);
  EXPECT_EQ(driver_.get(0x034), VirtioEntropy::kQueueSize);
  EXPECT_EQ(driver_.get(0x044), 1u);
}

TEST_F(VirtioMmioTest, RefusesFeaturesItDidNotOffer) {
  driver_.negotiate(kVersion1Feature | feature_bit(0));
  EXPECT_EQ(driver_.status(), 1u | 2u);
}

TEST_F(VirtioMmioTest, InsistsOnVersion1) {
  driver_.negotiate(kEventIndexFeature);
  EXPECT_EQ(driver_.status(), 1u | 2u);
}

TEST_F(VirtioMmioTest, DriverOkNeedsFeatures) {
  driver_.set(0x070, 1 | 2 | 4);
  EXPECT_EQ(driver_.status(), 1u | 2u);
}

TEST_F(VirtioMmioTest, DriverCannotSetOrClearNeedsReset) {
  driver_.start();
  driver_.set(0x070, kRunning | kNeedsReset);
  EXPECT_EQ(driver_.status(), kRunning);
}

TEST_F(VirtioMmioTest, FeaturesAreFixedAfterFeaturesOk) {
  driver_.negotiate(kVersion1Feature);
  driver_.set(0x024, 0);
  driver_.set(0x020, ~0u);
  driver_.set(0x070, kRunning);
  EXPECT_EQ(driver_.status(), kRunning);
  EXPECT_EQ(SavedDevice(device_).state().getDriverFeatures(), kVersion1Feature);
}

TEST_F(VirtioMmioTest, QueuesCannotBeSetUpBeforeFeatures) {
  driver_.set_queue_registers(0, 8, 0x1000, 0x2000, 0x3000);
  EXPECT_EQ(driver_.get(0x044), 0u);
  EXPECT_EQ(driver_.status(), 0u);
}

TEST_F(VirtioMmioTest, QueueThatDoesNotExist) {
  driver_.negotiate(kVersion1Feature);
  driver_.set_queue_registers(7, 8, 0x1000, 0x2000, 0x3000);
  EXPECT_EQ(driver_.get(0x034), 0u);
  EXPECT_EQ(driver_.get(0x044), 0u);
  driver_.set(0x070, kRunning);
  driver_.kick(7);
  driver_.kick(0xffff'ffff);
  EXPECT_EQ(driver_.status(), kRunning);
}

TEST_F(VirtioMmioTest, ReadyQueueIsNotChanged) {
  driver_.start();
  driver_.set(0x030, 0);
  driver_.set(0x038, 3);
  driver_.set(0x080, 0xdead0000);
  driver_.ring().add({driver_.input(8)});
  driver_.kick();
  EXPECT_TRUE(driver_.ring().take_used());
}

TEST_F(VirtioMmioTest, BadQueueNeedsReset) {
  driver_.negotiate(kVersion1Feature);
  driver_.set_queue_registers(0, 17, 0x1000, 0x2000, 0x3000);  // beyond QueueNumMax
  EXPECT_TRUE(driver_.needs_reset());
  EXPECT_EQ(line_.count, 0u);  // no interrupt before DRIVER_OK
  driver_.start();
  EXPECT_EQ(driver_.status(), kRunning);
}

TEST_F(VirtioMmioTest, UsedBufferInterruptsUntilAcknowledged) {
  driver_.start();
  driver_.ring().add({driver_.input(8)});
  driver_.kick();
  EXPECT_EQ(line_.count, 1u);
  EXPECT_EQ(driver_.get(0x060), 1u);
  driver_.set(0x064, 1);
  EXPECT_EQ(driver_.get(0x060), 0u);
}

TEST_F(VirtioMmioTest, BuffersMadeAvailableBeforeDriverOkAreServedAtDriverOk) {
  driver_.negotiate(kVersion1Feature);
  driver_.set_up_queues(8);
  driver_.ring().add({driver_.input(8)});
  driver_.kick();
  EXPECT_FALSE(driver_.ring().take_used());
  driver_.set(0x070, kRunning);
  EXPECT_TRUE(driver_.ring().take_used());
}

TEST_F(VirtioMmioTest, DisabledQueueIsNotServed) {
  driver_.start();
  driver_.set(0x030, 0);
  driver_.set(0x044, 0);
  EXPECT_EQ(driver_.get(0x044), 0u);
  driver_.ring().add({driver_.input(8)});
  driver_.kick();
  EXPECT_FALSE(driver_.ring().take_used());
}

TEST_F(VirtioMmioTest, ViolationStopsTheDeviceUntilReset) {
  driver_.start();
  driver_.ring().make_available(0xffff);
  driver_.kick();
  EXPECT_EQ(driver_.status(), kRunning | kNeedsReset);
  EXPECT_EQ(driver_.get(0x060), 2u);  // configuration change
  EXPECT_EQ(line_.count, 1u);

  driver_.ring().add({driver_.input(8)});
  driver_.kick();
  EXPECT_FALSE(driver_.ring().take_used());
  EXPECT_EQ(line_.count, 1u);

  driver_.start();
  driver_.ring().add({driver_.input(8)});
  driver_.kick();
  EXPECT_TRUE(driver_.ring().take_used());
}

TEST_F(VirtioMmioTest, ResetForgetsEverything) {
  driver_.start();
  driver_.ring().add({driver_.input(8)});
  driver_.kick();
  driver_.set(0x070, 0);
  EXPECT_EQ(driver_.status(), 0u);
  EXPECT_EQ(driver_.get(0x060), 0u);
  EXPECT_EQ(driver_.get(0x044), 0u);
}

// --- Saved state ---

class VirtioMmioStateTest : public VirtioMmioTest {
 protected:
  schema::VirtioDeviceState::Builder saved() {
    saved_ = std::make_unique<SavedDevice>(device_);
    return saved_->state();
  }
  void expect_refused() {
    VirtioMmio other("rng", std::make_unique<VirtioEntropy>(input_), memory_, line_, nullptr);
    EXPECT_THROW(other.restore(saved_->state().asReader()), Error);
  }
  std::unique_ptr<SavedDevice> saved_;
};

TEST_F(VirtioMmioStateTest, RestoredDeviceGoesOn) {
  driver_.start(kEventIndexFeature);
  driver_.ring().add({driver_.input(8)});
  driver_.kick();
  ASSERT_TRUE(driver_.ring().take_used());
  const auto state = saved();

  // A buffer whose notification the old device never saw.
  driver_.ring().add({driver_.input(8)});
  CountingLine line;
  VirtioMmio restored("rng", std::make_unique<VirtioEntropy>(input_), memory_, line, nullptr);
  restored.restore(state.asReader());
  restored.resume_after_restore();
  EXPECT_TRUE(driver_.ring().take_used());
  EXPECT_GE(line.count, 1u);
  FakeDriver registers(restored, memory_);
  EXPECT_EQ(registers.status(), kRunning);
  EXPECT_EQ(registers.get(0x060), 1u);
}

TEST_F(VirtioMmioStateTest, UnacknowledgedInterruptIsRaisedAgain) {
  driver_.start();
  driver_.ring().add({driver_.input(8)});
  driver_.kick();
  const auto state = saved();
  CountingLine line;
  VirtioMmio restored("rng", std::make_unique<VirtioEntropy>(input_), memory_, line, nullptr);
  restored.restore(state.asReader());
  EXPECT_EQ(line.count, 0u);
  restored.resume_after_restore();
  EXPECT_EQ(line.count, 1u);
}

TEST_F(VirtioMmioStateTest, ImpossibleStatesAreRefused) {
  driver_.start();
  saved().setStatus(0x10);
  expect_refused();
  saved().setStatus(1 | 2 | 4);
  expect_refused();
  saved().setInterruptStatus(4);
  expect_refused();
  saved().setDriverFeatures(kVersion1Feature | 1);
  expect_refused();
  saved().setDriverFeatures(0);
  expect_refused();
  saved().initQueues(2);
  expect_refused();
  saved().getQueues()[0].setSize(6);
  expect_refused();
  saved().getQueues()[0].setDevice(kGuestBytes);
  expect_refused();
  saved().setStatus(1 | 2);  // queue still ready
  expect_refused();
  saved().getFunction().initNet();
  expect_refused();
}

// --- With a loop ---

TEST(VirtioMmioLoopTest, NotificationIsServedOnTheLoopAndWaitsWhileFrozen) {
  GuestMemory memory(kGuestBytes);
  CountingLine line;
  FakeInput input;
  EventLoop loop("test");
  VirtioMmio device("rng", std::make_unique<VirtioEntropy>(input), memory, line, &loop);
  FakeDriver driver(device, memory);
  driver.start();
  driver.ring().add({driver.input(8)});
  driver.kick();
  EXPECT_TRUE(eventually([&] { return line.count == 1u; }));
  ASSERT_TRUE(driver.ring().take_used());

  device.freeze();
  driver.ring().add({driver.input(8)});
  driver.kick();
  std::this_thread::sleep_for(std::chrono::milliseconds(20));
  EXPECT_FALSE(driver.ring().take_used());
  device.thaw();
  EXPECT_TRUE(eventually([&] { return driver.ring().take_used().has_value(); }));
  loop.stop();
}

TEST(VirtioMmioLoopTest, FrozenDeviceCanBeRetired) {
  GuestMemory memory(kGuestBytes);
  CountingLine line;
  FakeInput input;
  EventLoop loop("test");
  VirtioMmio device("rng", std::make_unique<VirtioEntropy>(input), memory, line, &loop);
  FakeDriver driver(device, memory);
  driver.start();
  device.freeze();
  driver.ring().add({driver.input(8)});
  driver.kick();  // the loop's thread now waits for the device
  device.retire();
  loop.stop();
  EXPECT_FALSE(driver.ring().take_used());
}

TEST(DeviceLockTest, AnyThreadMayThaw) {
  DeviceLock lock;
  std::thread([&] { lock.freeze(); }).join();
  EXPECT_TRUE(lock.frozen());
  std::atomic<bool> locked = false;
  std::thread waiting([&] {
    const std::lock_guard guard(lock);
    locked = true;
  });
  std::this_thread::sleep_for(std::chrono::milliseconds(10));
  EXPECT_FALSE(locked);
  lock.thaw();
  waiting.join();
  EXPECT_TRUE(locked);
}

}  // namespace
}  // namespace pollux::vmm
