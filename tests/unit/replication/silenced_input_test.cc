#include "backup/silenced_input.h"

#include <gtest/gtest.h>

namespace pollux::backup {
namespace {

struct Sink final : vmm::ArrivalSink {
  void deliver(vmm::Arrival) override { ++delivered; }
  int delivered = 0;
};

TEST(SilencedInputTest, NothingOfThisHostReachesTheGuestBeforePromotion) {
  const auto ignored = std::make_shared<std::atomic<std::uint64_t>>(0);
  Sink sink;
  SilencedInput gate(ignored);
  gate.attach(sink);
  gate.offer(vmm::FrameArrival{{0}, Bytes(60)});
  gate.offer(vmm::ConsoleArrival{});
  EXPECT_EQ(sink.delivered, 0);
  EXPECT_EQ(*ignored, 2u);
  gate.promote();
  gate.offer(vmm::FrameArrival{{0}, Bytes(60)});
  EXPECT_EQ(sink.delivered, 1);
  EXPECT_EQ(*ignored, 2u);
}

}  // namespace
}  // namespace pollux::backup
