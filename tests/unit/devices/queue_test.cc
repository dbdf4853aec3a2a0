#include "vmm/devices/virtio/queue.h"

#include <gtest/gtest.h>

#include "tests/unit/devices/fake_guest.h"

namespace pollux::vmm {
namespace {

using namespace testing;

constexpr std::uint16_t kSize = 8;
constexpr std::uint64_t kBase = 0x10000;
constexpr std::uint64_t kData = 0x100000;

class QueueTest : public ::testing::Test {
 protected:
  void enable(bool event_index = false, bool indirect = false) {
    queue_.set_size(kSize);
    queue_.set_addresses({ring_.descriptors()}, {ring_.available()}, {ring_.used()});
    queue_.enable(event_index, indirect);
  }
  void expect_violation(const std::string& what) {
    try {
      (void)queue_.pop();
      ADD_FAILURE() << "accepted";
    } catch (const DriverError& error) {
      EXPECT_NE(std::string(error.what()).find(what), std::string::npos) << error.what();
    }
  }
  // Descriptor 0 refers to a table at kData.
  void add_indirect(const std::vector<Descriptor>& table, std::uint32_t length,
                    std::uint16_t extra_flags = 0) {
    for (std::size_t i = 0; i < table.size(); ++i) {
      ASSERT_TRUE(memory_.write({kData + i * sizeof(Descriptor)}, bytes_of(table[i])));
    }
    ring_.set_descriptor(0, {kData, length, static_cast<std::uint16_t>(kIndirect | extra_flags), 1});
    ring_.make_available(0);
  }

  GuestMemory memory_{kGuestBytes};
  Ring ring_{memory_, kBase, kSize};
  Queue queue_{memory_, kMaxQueueSize};
};

TEST_F(QueueTest, EmptyQueueGivesNothing) {
  enable();
  EXPECT_FALSE(queue_.pop());
}

TEST_F(QueueTest, ChainIsSplitIntoReadableAndWritable) {
  enable();
  const std::uint16_t head = ring_.add({{kData, 16}, {kData + 0x1000, 512}, {kData + 0x2000, 100, true}});
  const auto chain = queue_.pop();
  ASSERT_TRUE(chain);
  EXPECT_EQ(chain->head, head);
  EXPECT_EQ(chain->readable.size(), 2u);
  EXPECT_EQ(chain->readable_bytes, 528u);
  EXPECT_EQ(chain->writable.size(), 1u);
  EXPECT_EQ(chain->writable_bytes, 100u);
  EXPECT_FALSE(queue_.pop());
}

TEST_F(QueueTest, UnpoppedRequestComesAgain) {
  enable();
  const std::uint16_t head = ring_.add({{kData, 16}});
  ASSERT_TRUE(queue_.pop());
  queue_.unpop(1);
  const auto again = queue_.pop();
  ASSERT_TRUE(again);
  EXPECT_EQ(again->head, head);
}

TEST_F(QueueTest, CopiesCrossSegments) {
  enable();
  ring_.add({{kData, 3}, {kData + 0x1000, 5}, {kData + 0x2000, 4, true}, {kData + 0x3000, 4, true}});
  const auto chain = queue_.pop();
  ASSERT_TRUE(memory_.write({kData}, bytes_from("abc")));
  ASSERT_TRUE(memory_.write({kData + 0x1000}, bytes_from("defgh")));
  Bytes middle(4);
  EXPECT_EQ(copy_from_guest(memory_, chain->readable, 2, middle), 4u);
  EXPECT_EQ(middle, bytes_from("cdef"));
  Bytes tail(10);
  EXPECT_EQ(copy_from_guest(memory_, chain->readable, 6, tail), 2u);
  EXPECT_EQ(copy_from_guest(memory_, chain->readable, 8, tail), 0u);
  EXPECT_EQ(copy_to_guest(memory_, chain->writable, 3, bytes_from("12345678")), 5u);
  Bytes end(4);
  ASSERT_TRUE(memory_.read({kData + 0x3000}, end));
  EXPECT_EQ(end, bytes_from("2345"));
}

TEST_F(QueueTest, UsedEntriesReachTheDriverTogetherAndDirtyTheirPage) {
  enable();
  (void)memory_.dirty().take();
  const std::array entries = {UsedEntry{3, 10}, UsedEntry{4, 20}};
  queue_.push_used(entries);
  auto used = ring_.take_used();
  ASSERT_TRUE(used);
  EXPECT_EQ(used->head, 3);
  EXPECT_EQ(used->written, 10u);
  used = ring_.take_used();
  ASSERT_TRUE(used);
  EXPECT_EQ(used->head, 4);
  EXPECT_FALSE(ring_.take_used());
  EXPECT_EQ(memory_.dirty().take(), std::vector<Gfn>{GuestAddress{ring_.used()}.gfn()});
}

TEST_F(QueueTest, IndicesWrapAt65536) {
  Ring ring(memory_, kBase, kSize, 65530);
  QueueRegisters registers{kSize, true, {ring.descriptors()}, {ring.available()}, {ring.used()}};
  queue_.restore(registers, 65530, 65530, std::nullopt, false, false);
  for (unsigned i = 0; i < 20; ++i) {
    const std::uint16_t head = ring.add({{kData, 16}});
    const auto chain = queue_.pop();
    ASSERT_TRUE(chain) << i;
    EXPECT_EQ(chain->head, head);
    queue_.push_used(chain->head, i);
    const auto used = ring.take_used();
    ASSERT_TRUE(used) << i;
    EXPECT_EQ(used->written, i);
  }
  EXPECT_EQ(queue_.next_available(), 14);
  EXPECT_EQ(queue_.next_used(), 14);
}

// --- What a hostile driver may try ---

TEST_F(QueueTest, HeadOutOfRange) {
  enable();
  ring_.make_available(kSize);
  expect_violation("descriptor index");
}

TEST_F(QueueTest, NextOutOfRange) {
  enable();
  ring_.set_descriptor(0, {kData, 16, kNext, 0xffff});
  ring_.make_available(0);
  expect_violation("descriptor index");
}

TEST_F(QueueTest, Loop) {
  enable();
  ring_.set_descriptor(0, {kData, 16, kNext, 1});
  ring_.set_descriptor(1, {kData, 16, kNext, 0});
  ring_.make_available(0);
  expect_violation("loop");
}

TEST_F(QueueTest, SelfLoop) {
  enable();
  ring_.set_descriptor(2, {kData, 16, kNext, 2});
  ring_.make_available(2);
  expect_violation("loop");
}

TEST_F(QueueTest, LongestChainIsAccepted) {
  enable();
  ring_.add(std::vector<Buffer>(kSize, Buffer{kData, 16, false}));
  const auto chain = queue_.pop();
  ASSERT_TRUE(chain);
  EXPECT_EQ(chain->readable.size(), kSize);
}

TEST_F(QueueTest, BufferOutsideOfMemory) {
  enable();
  ring_.add({{kGuestBytes, 1}});
  expect_violation("outside of memory");
}

TEST_F(QueueTest, BufferCrossesTheEndOfMemory) {
  enable();
  ring_.add({{kGuestBytes - 8, 16}});
  expect_violation("outside of memory");
}

TEST_F(QueueTest, BufferAddressWraps) {
  enable();
  ring_.add({{~std::uint64_t{0} - 7, 16}});
  expect_violation("outside of memory");
}

TEST_F(QueueTest, BufferLengthHuge) {
  enable();
  ring_.add({{kData, 0xffff'ffff}});
  expect_violation("outside of memory");
}

TEST_F(QueueTest, EmptyBuffer) {
  enable();
  ring_.add({{kData, 0}});
  expect_violation("empty buffer");
}

TEST_F(QueueTest, ReadableBehindWritable) {
  enable();
  ring_.add({{kData, 16, true}, {kData, 16, false}});
  expect_violation("behind a writable");
}

TEST_F(QueueTest, AvailableIndexRunsAhead) {
  enable();
  ring_.set_available_index(kSize + 1);
  expect_violation("runs ahead");
}

TEST_F(QueueTest, AvailableIndexRunsBackwards) {
  enable();
  ring_.set_available_index(0xffff);
  expect_violation("runs ahead");
}

TEST(QueueLengthTest, ChainLongerThan4GiB) {
  GuestMemory memory(std::uint64_t{3} << 30);  // never touched: address space only
  Ring ring(memory, kBase, kSize);
  Queue queue(memory, kMaxQueueSize);
  queue.set_size(kSize);
  queue.set_addresses({ring.descriptors()}, {ring.available()}, {ring.used()});
  queue.enable(false, false);
  ring.add({{0, 0x8000'0000}, {0, 0x8000'0000}});
  EXPECT_THROW((void)queue.pop(), DriverError);
}

TEST(QueueHoleTest, BufferAcrossTheHole) {
  GuestMemory memory(kHoleStart.value + (1 << 20));
  Ring ring(memory, kBase, kSize);
  Queue queue(memory, kMaxQueueSize);
  queue.set_size(kSize);
  queue.set_addresses({ring.descriptors()}, {ring.available()}, {ring.used()});
  queue.enable(false, false);
  ring.add({{kHoleEnd.value, 4096}});
  EXPECT_TRUE(queue.pop());
  ring.add({{kHoleStart.value - 8, 16}});
  EXPECT_THROW((void)queue.pop(), DriverError);
}

// --- Indirect descriptors ---

TEST_F(QueueTest, IndirectChain) {
  enable(false, true);
  add_indirect({{kData + 0x1000, 16, kNext, 2}, {}, {kData + 0x2000, 32, kWritable, 0}},
               3 * sizeof(Descriptor));
  const auto chain = queue_.pop();
  ASSERT_TRUE(chain);
  EXPECT_EQ(chain->readable_bytes, 16u);
  EXPECT_EQ(chain->writable_bytes, 32u);
}

TEST_F(QueueTest, IndirectBehindDirect) {
  enable(false, true);
  const Descriptor entry{kData + 0x1000, 16, kWritable, 0};
  ASSERT_TRUE(memory_.write({kData}, bytes_of(entry)));
  ring_.set_descriptor(0, {kData + 0x3000, 8, kNext, 1});
  // The write flag means nothing here (2.7.5.3.2).
  ring_.set_descriptor(1, {kData, sizeof entry, kIndirect | kWritable, 0});
  ring_.make_available(0);
  const auto chain = queue_.pop();
  ASSERT_TRUE(chain);
  EXPECT_EQ(chain->readable_bytes, 8u);
  EXPECT_EQ(chain->writable_bytes, 16u);
}

TEST_F(QueueTest, IndirectWithoutTheFeature) {
  enable(false, false);
  add_indirect({{kData + 0x1000, 16, 0, 0}}, sizeof(Descriptor));
  expect_violation("without the feature");
}

TEST_F(QueueTest, IndirectTableSizeNotAMultiple) {
  enable(false, true);
  add_indirect({{kData + 0x1000, 16, 0, 0}}, sizeof(Descriptor) + 1);
  expect_violation("table size");
}

TEST_F(QueueTest, IndirectTableEmpty) {
  enable(false, true);
  add_indirect({}, 0);
  expect_violation("table size");
}

TEST_F(QueueTest, IndirectNested) {
  enable(false, true);
  add_indirect({{kData + 0x1000, 16, kIndirect, 0}}, sizeof(Descriptor));
  expect_violation("nested");
}

TEST_F(QueueTest, IndirectWithNext) {
  enable(false, true);
  add_indirect({{kData + 0x1000, 16, 0, 0}}, sizeof(Descriptor), kNext);
  expect_violation("with a next");
}

TEST_F(QueueTest, IndirectNextOutOfTable) {
  enable(false, true);
  add_indirect({{kData + 0x1000, 16, kNext, 2}, {}}, 2 * sizeof(Descriptor));
  expect_violation("indirect descriptor index");
}

TEST_F(QueueTest, IndirectLoop) {
  enable(false, true);
  add_indirect({{kData + 0x1000, 16, kNext, 1}, {kData + 0x1000, 16, kNext, 0}}, 2 * sizeof(Descriptor));
  expect_violation("loop");
}

TEST_F(QueueTest, IndirectTableOutsideOfMemory) {
  enable(false, true);
  ring_.set_descriptor(0, {kGuestBytes - 16, 32, kIndirect, 0});
  ring_.make_available(0);
  expect_violation("table outside");
}

TEST_F(QueueTest, IndirectTableLongerThanAnyChain) {
  enable(false, true);
  const std::uint32_t entries = kMaxQueueSize + 1;
  std::vector<Descriptor> table;
  for (std::uint32_t i = 0; i < entries; ++i) {
    table.push_back(
        {kData + 0x8000, 1, i + 1 < entries ? kNext : std::uint16_t{0}, static_cast<std::uint16_t>(i + 1)});
  }
  add_indirect(table, entries * static_cast<std::uint32_t>(sizeof(Descriptor)));
  expect_violation("loop");
}

// --- Layout ---

TEST_F(QueueTest, UnusableLayoutsAreRefused) {
  struct Case {
    std::uint16_t size;
    std::uint64_t descriptors, available, used;
  };
  const std::vector<Case> cases = {
      {0, 0x1000, 0x2000, 0x3000},           {6, 0x1000, 0x2000, 0x3000},
      {512, 0x1000, 0x4000, 0x6000},         {8, 0x1008, 0x2000, 0x3000},
      {8, 0x1000, 0x2001, 0x3000},           {8, 0x1000, 0x2000, 0x3002},
      {8, kGuestBytes - 16, 0x2000, 0x3000}, {8, 0x1000, kGuestBytes - 4, 0x3000},
      {8, 0x1000, 0x2000, kGuestBytes - 4},  {8, ~std::uint64_t{15}, 0x2000, 0x3000},
  };
  for (const Case& bad : cases) {
    Queue queue(memory_, kMaxQueueSize);
    queue.set_size(bad.size);
    queue.set_addresses({bad.descriptors}, {bad.available}, {bad.used});
    EXPECT_THROW(queue.enable(false, false), DriverError) << bad.size << " " << bad.descriptors;
    EXPECT_FALSE(queue.ready());
    QueueRegisters registers = queue.registers();
    registers.ready = true;
    EXPECT_THROW(queue.restore(registers, 0, 0, std::nullopt, false, false), Error);
  }
}

// --- Notification suppression (2.7.7, 2.7.10) ---

TEST_F(QueueTest, NoInterruptFlagIsHonoured) {
  enable(false);
  EXPECT_FALSE(queue_.take_interrupt_request());
  queue_.push_used(0, 0);
  EXPECT_TRUE(queue_.take_interrupt_request());
  EXPECT_FALSE(queue_.take_interrupt_request());
  ring_.set_flags(1);
  queue_.push_used(0, 0);
  EXPECT_FALSE(queue_.take_interrupt_request());
}

TEST_F(QueueTest, UsedEventChoosesTheInterrupt) {
  enable(true);
  ring_.set_used_event(2);  // wants to hear of the third
  queue_.push_used(0, 0);
  queue_.push_used(0, 0);
  EXPECT_FALSE(queue_.take_interrupt_request());
  queue_.push_used(0, 0);
  EXPECT_TRUE(queue_.take_interrupt_request());
  queue_.push_used(0, 0);
  EXPECT_FALSE(queue_.take_interrupt_request());
}

TEST_F(QueueTest, AvailableEventIsSetWhenTheQueueIsEmpty) {
  enable(true);
  ring_.add({{kData, 16}});
  ring_.add({{kData, 16}});
  ASSERT_TRUE(queue_.pop());
  EXPECT_EQ(ring_.available_event(), 0);
  ASSERT_TRUE(queue_.pop());
  EXPECT_FALSE(queue_.pop());
  EXPECT_EQ(ring_.available_event(), 2);
}

TEST_F(QueueTest, RestoredQueueInterruptsForWhatItPushes) {
  enable(true);
  Queue restored(memory_, kMaxQueueSize);
  restored.restore(queue_.registers(), 100, 100, std::nullopt, true, false);
  EXPECT_FALSE(restored.take_interrupt_request());
  ring_.set_used_event(101);
  restored.push_used(0, 0);
  EXPECT_FALSE(restored.take_interrupt_request());
  restored.push_used(0, 0);
  EXPECT_TRUE(restored.take_interrupt_request());
}

}  // namespace
}  // namespace pollux::vmm
