#include "vmm/devices/virtio/virtio_entropy.h"

#include <gtest/gtest.h>

#include "tests/unit/devices/fake_guest.h"
#include "vmm/gates/pass_through.h"

namespace pollux::vmm {
namespace {

using namespace testing;

class VirtioEntropyTest : public ::testing::Test {
 protected:
  GuestMemory memory_{kGuestBytes};
  CountingLine line_;
  FakeInput input_;
  VirtioMmio device_{"rng", std::make_unique<VirtioEntropy>(input_), memory_, line_, nullptr};
  FakeDriver driver_{device_, memory_};
};

TEST_F(VirtioEntropyTest, FillsBuffersFromTheInputGate) {
  driver_.start();
  const Buffer buffer = driver_.input(64);
  driver_.ring().add({buffer});
  driver_.kick();
  const auto used = driver_.ring().take_used();
  ASSERT_TRUE(used);
  EXPECT_EQ(used->written, 64u);
  const Bytes bytes = driver_.contents(buffer);
  EXPECT_EQ(bytes[0], std::byte{1});
  EXPECT_EQ(bytes[63], std::byte{64});
}

TEST_F(VirtioEntropyTest, OneRequestIsBounded) {
  driver_.start();
  driver_.ring().add({driver_.input(3 * VirtioEntropy::kMaxRequestBytes)});
  driver_.kick();
  const auto used = driver_.ring().take_used();
  ASSERT_TRUE(used);
  EXPECT_EQ(used->written, VirtioEntropy::kMaxRequestBytes);
}

TEST_F(VirtioEntropyTest, ReadableBufferIsAViolation) {
  driver_.start();
  driver_.ring().add({driver_.output(Bytes(4)), driver_.input(4)});
  driver_.kick();
  EXPECT_TRUE(driver_.needs_reset());
}

TEST(PassThroughInputTest, EntropyFillsTheWholeBuffer) {
  PassThroughInput input;
  Bytes bytes(1024);
  input.entropy(bytes);
  // 64 zero bytes in a row do not happen by chance.
  for (std::size_t i = 0; i + 64 <= bytes.size(); i += 64) {
    EXPECT_NE(Bytes(bytes.begin() + std::ptrdiff_t(i), bytes.begin() + std::ptrdiff_t(i) + 64), Bytes(64));
  }
}

}  // namespace
}  // namespace pollux::vmm
