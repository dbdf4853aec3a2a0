#include "vmm/devices/virtio/virtio_console.h"

#include <gtest/gtest.h>

#include "tests/unit/devices/fake_guest.h"

namespace pollux::vmm {
namespace {

using namespace testing;

constexpr std::uint32_t kReceive = 0;
constexpr std::uint32_t kTransmit = 1;

class VirtioConsoleTest : public ::testing::Test {
 protected:
  GuestMemory memory_{kGuestBytes};
  CountingLine line_;
  FakeOutput gate_;
  VirtioConsole* console_ = new VirtioConsole(gate_);
  VirtioMmio device_{"console", std::unique_ptr<VirtioFunction>(console_), memory_, line_, nullptr};
  FakeDriver driver_{device_, memory_};
};

TEST_F(VirtioConsoleTest, OutputGoesToTheGate) {
  driver_.start();
  driver_.ring(kTransmit).add({driver_.output(bytes_from("hello ")), driver_.output(bytes_from("world"))});
  driver_.kick(kTransmit);
  EXPECT_EQ(gate_.console_output(), bytes_from("hello world"));
  EXPECT_TRUE(driver_.ring(kTransmit).take_used());
}

TEST_F(VirtioConsoleTest, LongOutputIsCut) {
  driver_.start();
  driver_.ring(kTransmit).add({driver_.output(Bytes(VirtioConsole::kMaxOutputBytes + 5))});
  driver_.kick(kTransmit);
  EXPECT_EQ(gate_.console_output().size(), VirtioConsole::kMaxOutputBytes);
}

TEST_F(VirtioConsoleTest, InputFillsBuffersAndWaitsForMore) {
  driver_.start();
  const Buffer first = driver_.input(4);
  driver_.ring(kReceive).add({first});
  console_->deliver(bytes_from("abcdef"));
  auto used = driver_.ring(kReceive).take_used();
  ASSERT_TRUE(used);
  EXPECT_EQ(used->written, 4u);
  EXPECT_EQ(driver_.contents(first), bytes_from("abcd"));
  const Buffer second = driver_.input(4);
  driver_.ring(kReceive).add({second});
  driver_.kick(kReceive);
  used = driver_.ring(kReceive).take_used();
  ASSERT_TRUE(used);
  EXPECT_EQ(used->written, 2u);
  EXPECT_EQ(driver_.contents(second)[1], std::byte{'f'});
}

TEST_F(VirtioConsoleTest, WaitingInputIsBoundedAndSaved) {
  driver_.start();
  console_->deliver(bytes_from("saved"));
  console_->deliver(Bytes(VirtioConsole::kMaxWaitingInput));
  SavedDevice saved(device_);
  EXPECT_EQ(saved.state().getFunction().getConsole().getInput().size(), VirtioConsole::kMaxWaitingInput);
  const Buffer buffer = driver_.input(5);
  driver_.ring(kReceive).add({buffer});
  VirtioMmio restored("console", std::make_unique<VirtioConsole>(gate_), memory_, line_, nullptr);
  restored.restore(saved.state().asReader());
  restored.resume_after_restore();
  EXPECT_EQ(driver_.contents(buffer), bytes_from("saved"));
}

TEST_F(VirtioConsoleTest, TooMuchSavedInputIsRefused) {
  SavedDevice saved(device_);
  saved.state().getFunction().getConsole().initInput(VirtioConsole::kMaxWaitingInput + 1);
  VirtioMmio restored("console", std::make_unique<VirtioConsole>(gate_), memory_, line_, nullptr);
  EXPECT_THROW(restored.restore(saved.state().asReader()), Error);
}

TEST_F(VirtioConsoleTest, Violations) {
  driver_.start();
  driver_.ring(kTransmit).add({driver_.input(4)});
  driver_.kick(kTransmit);
  EXPECT_TRUE(driver_.needs_reset());
  driver_.start();
  driver_.ring(kReceive).add({driver_.output(Bytes(4))});
  console_->deliver(bytes_from("x"));
  EXPECT_TRUE(driver_.needs_reset());
}

}  // namespace
}  // namespace pollux::vmm
