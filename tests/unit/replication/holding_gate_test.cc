#include "primary/holding_gate.h"

#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <cstring>
#include <future>
#include <random>
#include <thread>

#include "tests/support/controlled_image.h"
#include "tests/support/temporary_folder.h"

namespace pollux::primary {
namespace {

using namespace std::chrono_literals;
using protocol::EpochId;
using testing::ControlledImage;
using testing::DiskCall;

constexpr std::uint64_t kDiskSize = 1 << 20;
constexpr vmm::DiskIndex kDisk{0};
constexpr vmm::NicIndex kNic{0};

class RecordingNic final : public vmm::Nic {
 public:
  explicit RecordingNic(std::vector<Bytes>& sent) : sent_(sent) {}
  [[nodiscard]] int poll_fd() const override { return -1; }
  [[nodiscard]] std::optional<Bytes> receive() override { return std::nullopt; }
  void send(ByteView frame) override { sent_.emplace_back(frame.begin(), frame.end()); }

 private:
  std::vector<Bytes>& sent_;
};

class RecordingConsole final : public vmm::ConsolePort {
 public:
  explicit RecordingConsole(Bytes& written) : written_(written) {}
  [[nodiscard]] int poll_fd() const override { return -1; }
  [[nodiscard]] Bytes read() override { return {}; }
  void write(ByteView bytes) override { written_.insert(written_.end(), bytes.begin(), bytes.end()); }

 private:
  Bytes& written_;
};

Bytes sectors(std::size_t count, unsigned char value) { return Bytes(count * vmm::kSectorSize, std::byte{value}); }

class HoldingGateTest : public ::testing::Test {
 protected:
  HoldingGateTest() {
    auto image = std::make_unique<ControlledImage>(folder_.make_file("disk.raw", kDiskSize));
    image_ = image.get();
    std::vector<std::unique_ptr<vmm::Image>> disks;
    disks.push_back(std::move(image));
    std::vector<std::unique_ptr<vmm::Nic>> nics;
    nics.push_back(std::make_unique<RecordingNic>(frames_));
    backends_ = std::make_unique<vmm::Backends>(std::move(disks), std::move(nics),
                                                std::make_unique<RecordingConsole>(console_),
                                                vmm::open_console("none", [] {}));
    make_gate(kDiskSize);
  }
  ~HoldingGateTest() override {
    image_->let_all_go();
    gate_.reset();
  }

  void make_gate(std::uint64_t held_limit) {
    gate_ = std::make_unique<HoldingGate>(*backends_, held_limit,
                                          HoldingGate::Callbacks{.durable = [this](EpochId epoch) { durable_ = epoch.value; },
                                                                 .image_failed = [this](const std::string& path) {
                                                                   EXPECT_EQ(path, image_->path());
                                                                   ++image_failures_;
                                                                 }});
  }
  void release_up_to(std::uint64_t epoch) {
    gate_->release(EpochId{epoch});
    gate_->drain();
  }
  Bytes image_at(std::uint64_t offset, std::size_t length) {
    Bytes bytes(length);
    EXPECT_TRUE(backends_->disk(kDisk).read(offset, bytes));
    return bytes;
  }
  Bytes guest_reads(std::uint64_t offset, std::size_t length) {
    Bytes bytes(length);
    EXPECT_TRUE(gate_->read(kDisk, offset, bytes));
    return bytes;
  }

  testing::TemporaryFolder folder_;
  std::vector<Bytes> frames_;
  Bytes console_;
  std::atomic<std::uint64_t> durable_ = 0;
  std::atomic<int> image_failures_ = 0;
  ControlledImage* image_ = nullptr;  // of backends_
  std::unique_ptr<vmm::Backends> backends_;
  std::unique_ptr<HoldingGate> gate_;
};

TEST_F(HoldingGateTest, PassesEverythingWhileNotProtected) {
  EXPECT_TRUE(gate_->transmit(kNic, sectors(1, 1)));
  EXPECT_TRUE(gate_->write(kDisk, 0, sectors(1, 2)));
  EXPECT_EQ(frames_.size(), 1u);
  EXPECT_EQ(image_at(0, 512), sectors(1, 2));
}

TEST_F(HoldingGateTest, NothingLeavesBeforeItsEpochIsReleasedAndThenInOrder) {
  gate_->hold();
  EXPECT_TRUE(gate_->transmit(kNic, sectors(1, 1)));
  gate_->console(vmm::kSerialConsole, sectors(1, 9));
  EXPECT_TRUE(gate_->write(kDisk, 0, sectors(1, 5)));
  gate_->seal(EpochId{1});
  EXPECT_TRUE(gate_->transmit(kNic, sectors(1, 2)));
  gate_->seal(EpochId{2});
  EXPECT_TRUE(frames_.empty());
  EXPECT_TRUE(console_.empty());
  EXPECT_EQ(image_at(0, 512), sectors(1, 0));

  gate_->release(EpochId{1});
  gate_->drain();
  EXPECT_EQ(frames_, std::vector<Bytes>{sectors(1, 1)});
  EXPECT_EQ(console_, sectors(1, 9));
  EXPECT_EQ(image_at(0, 512), sectors(1, 5));

  gate_->release(EpochId{2});
  EXPECT_EQ(frames_.size(), 2u);
  EXPECT_EQ(gate_->held_bytes(), 0u);
}

TEST_F(HoldingGateTest, TheGuestReadsItsOwnHeldWrites) {
  EXPECT_TRUE(gate_->write(kDisk, 0, sectors(4, 1)));
  gate_->hold();
  EXPECT_TRUE(gate_->write(kDisk, 512, sectors(1, 2)));
  gate_->seal(EpochId{1});
  EXPECT_TRUE(gate_->discard(kDisk, 1024, 512));
  Bytes expected = sectors(4, 1);
  std::fill_n(expected.begin() + 512, 512, std::byte{2});
  std::fill_n(expected.begin() + 1024, 512, std::byte{0});
  EXPECT_EQ(guest_reads(0, 2048), expected);
  EXPECT_EQ(image_at(0, 2048), sectors(4, 1));
  gate_->release(EpochId{1});
  gate_->drain();
  EXPECT_EQ(guest_reads(0, 2048), expected) << "the discard is still held";
  EXPECT_EQ(image_at(512, 512), sectors(1, 2));
  EXPECT_EQ(image_at(1024, 512), sectors(1, 1));
}

TEST_F(HoldingGateTest, AFlushIsReportedDurableOnlyOnceItsEpochIsReleased) {
  gate_->hold();
  EXPECT_TRUE(gate_->flush(kDisk));
  const auto held = gate_->seal(EpochId{1});
  EXPECT_TRUE(held->flushed);
  EXPECT_FALSE(gate_->seal(EpochId{2})->flushed);
  EXPECT_EQ(durable_, 0u);
  gate_->release(EpochId{2});
  gate_->drain();
  EXPECT_EQ(durable_, 1u);
}

TEST_F(HoldingGateTest, FramesAreRefusedBeyondTheLimitAndTheDeviceIsToldWhenThereIsRoom) {
  make_gate(1024);
  std::atomic<int> told = 0;
  gate_->on_room([&] { ++told; });
  gate_->hold();
  EXPECT_TRUE(gate_->transmit(kNic, sectors(2, 1)));
  EXPECT_FALSE(gate_->transmit(kNic, sectors(1, 2)));
  gate_->seal(EpochId{1});
  gate_->release(EpochId{1});
  EXPECT_EQ(told, 1);
  EXPECT_TRUE(gate_->transmit(kNic, sectors(1, 2)));
}

TEST_F(HoldingGateTest, ADiskWriteBeyondTheLimitWaitsForARelease) {
  make_gate(1024);
  gate_->hold();
  EXPECT_TRUE(gate_->write(kDisk, 0, sectors(2, 1)));
  auto second = std::async(std::launch::async, [&] { return gate_->write(kDisk, 4096, sectors(1, 2)); });
  EXPECT_EQ(second.wait_for(50ms), std::future_status::timeout);
  gate_->seal(EpochId{1});
  gate_->release(EpochId{1});
  EXPECT_TRUE(second.get());
}

TEST_F(HoldingGateTest, LosingProtectionLetsEverythingOutAndPassesAgain) {
  gate_->hold();
  EXPECT_TRUE(gate_->transmit(kNic, sectors(1, 1)));
  EXPECT_TRUE(gate_->write(kDisk, 0, sectors(1, 3)));
  gate_->seal(EpochId{1});
  EXPECT_TRUE(gate_->transmit(kNic, sectors(1, 2)));
  gate_->pass();
  EXPECT_EQ(frames_, (std::vector<Bytes>{sectors(1, 1), sectors(1, 2)}));
  EXPECT_EQ(image_at(0, 512), sectors(1, 3));
  EXPECT_TRUE(gate_->transmit(kNic, sectors(1, 4)));
  EXPECT_EQ(frames_.size(), 3u);
}

// No backup vouches any more for the flushes of which the guest may speak.
TEST_F(HoldingGateTest, LosingProtectionTheImageIsDurableBeforeAnythingLeaves) {
  for (const DiskCall step : {DiskCall::kWrite, DiskCall::kSync}) {
    frames_.clear();
    console_.clear();
    gate_->hold();
    EXPECT_TRUE(gate_->write(kDisk, 0, sectors(1, 3)));
    EXPECT_TRUE(gate_->flush(kDisk));
    EXPECT_TRUE(gate_->transmit(kNic, sectors(1, 1)));
    gate_->console(vmm::kSerialConsole, sectors(1, 9));
    const std::uint64_t before = image_->begun(step);
    image_->hold(step);
    auto passing = std::async(std::launch::async, [&] { gate_->pass(); });
    ASSERT_TRUE(image_->wait_until_begun(step, before + 1));
    EXPECT_EQ(passing.wait_for(20ms), std::future_status::timeout);
    EXPECT_TRUE(frames_.empty());
    EXPECT_TRUE(console_.empty());
    image_->let_all_go();
    passing.get();
    EXPECT_EQ(frames_.size(), 1u);
    EXPECT_EQ(console_, sectors(1, 9));
  }
}

TEST_F(HoldingGateTest, WhatIsEmittedWhileProtectionIsBeingLostLeavesToo) {
  gate_->hold();
  EXPECT_TRUE(gate_->write(kDisk, 0, sectors(1, 3)));
  image_->hold(DiskCall::kWrite);
  auto passing = std::async(std::launch::async, [&] { gate_->pass(); });
  ASSERT_TRUE(image_->wait_until_begun(DiskCall::kWrite, 1));
  gate_->console(vmm::kSerialConsole, sectors(1, 9));
  image_->let_all_go();
  passing.get();
  EXPECT_EQ(console_, sectors(1, 9));
  EXPECT_EQ(gate_->held_bytes(), 0u);
}

TEST_F(HoldingGateTest, LosingProtectionMakesRoom) {
  make_gate(1024);
  std::atomic<int> told = 0;
  gate_->on_room([&] { ++told; });
  gate_->hold();
  EXPECT_TRUE(gate_->write(kDisk, 0, sectors(2, 1)));
  EXPECT_FALSE(gate_->transmit(kNic, sectors(1, 2)));
  auto waiting = std::async(std::launch::async, [&] { return gate_->write(kDisk, 1024, sectors(1, 1)); });
  EXPECT_EQ(waiting.wait_for(20ms), std::future_status::timeout);
  gate_->pass();
  EXPECT_EQ(told, 1);
  EXPECT_TRUE(waiting.get());
  gate_->drain();
  EXPECT_EQ(image_at(0, 1536), sectors(3, 1));
}

// The held bytes of a disk write are free when it is on the image, not already when it is committed.
TEST_F(HoldingGateTest, AWaitingDiskWriteGoesOnWhenTheImageHasTheOneBefore) {
  make_gate(1024 + HoldingGate::kItemOverhead);
  gate_->hold();
  EXPECT_TRUE(gate_->write(kDisk, 0, sectors(2, 1)));
  gate_->seal(EpochId{1});
  image_->hold(DiskCall::kWrite);
  auto waiting = std::async(std::launch::async, [&] { return gate_->write(kDisk, 4096, sectors(1, 2)); });
  gate_->release(EpochId{1});
  ASSERT_TRUE(image_->wait_until_begun(DiskCall::kWrite, 1));
  EXPECT_EQ(waiting.wait_for(20ms), std::future_status::timeout);
  image_->let_all_go();
  EXPECT_TRUE(waiting.get());
  EXPECT_EQ(gate_->held_bytes(), 512 + HoldingGate::kItemOverhead);
}

TEST_F(HoldingGateTest, OnceAnImageRefusesACommittedWriteNothingLeaves) {
  for (const DiskCall refused : {DiskCall::kWrite, DiskCall::kDiscard, DiskCall::kSync}) {
    image_->recover();
    make_gate(1024 + 3 * HoldingGate::kItemOverhead);
    image_failures_ = 0;
    gate_->hold();
    EXPECT_TRUE(gate_->write(kDisk, 0, sectors(2, 7)));
    EXPECT_TRUE(gate_->discard(kDisk, 4096, 512));
    EXPECT_TRUE(gate_->flush(kDisk));
    gate_->seal(EpochId{1});
    gate_->console(vmm::kSerialConsole, sectors(1, 9));
    gate_->seal(EpochId{2});
    auto waiting = std::async(std::launch::async, [&] { return gate_->write(kDisk, 8192, sectors(2, 7)); });
    EXPECT_EQ(waiting.wait_for(20ms), std::future_status::timeout);

    image_->fail(refused);
    gate_->release(EpochId{1});
    EXPECT_FALSE(waiting.get()) << "let go, and told that it failed";
    EXPECT_EQ(image_failures_, 1);
    gate_->release(EpochId{2});
    gate_->pass();
    gate_->drain();
    EXPECT_TRUE(console_.empty());
    EXPECT_EQ(durable_, 0u);
    EXPECT_FALSE(gate_->write(kDisk, 0, sectors(1, 8)));
    gate_.reset();
    EXPECT_EQ(image_failures_, 1);
    EXPECT_EQ(image_at(8192, 1024), sectors(2, 0));
  }
}

TEST_F(HoldingGateTest, AbandonedItLetsNothingOutAndEveryWaiterGo) {
  make_gate(1024);
  gate_->hold();
  EXPECT_TRUE(gate_->write(kDisk, 0, sectors(1, 7)));
  gate_->console(vmm::kSerialConsole, sectors(1, 9));
  gate_->seal(EpochId{1});
  auto waiting = std::async(std::launch::async, [&] { return gate_->write(kDisk, 8192, sectors(2, 7)); });
  EXPECT_EQ(waiting.wait_for(20ms), std::future_status::timeout);
  gate_->abandon();
  EXPECT_FALSE(waiting.get());
  gate_->release(EpochId{1});
  gate_->drain();
  EXPECT_TRUE(console_.empty());
  gate_.reset();
  EXPECT_EQ(image_at(0, 512), sectors(1, 0));
  EXPECT_EQ(image_failures_, 0) << "a host that failed for another reason";
}

// Whom the callbacks lead to may be gone then.
TEST_F(HoldingGateTest, AfterAbandonNoCallbackComes) {
  gate_->hold();
  EXPECT_TRUE(gate_->flush(kDisk));
  gate_->seal(EpochId{1});
  image_->hold(DiskCall::kSync);
  gate_->release(EpochId{1});
  ASSERT_TRUE(image_->wait_until_begun(DiskCall::kSync, 1));
  auto abandoned = std::async(std::launch::async, [&] {
    gate_->abandon();
    return durable_.load();
  });
  EXPECT_EQ(abandoned.wait_for(20ms), std::future_status::timeout);
  image_->let_all_go();
  const std::uint64_t durable_then = abandoned.get();
  gate_.reset();
  EXPECT_EQ(durable_, durable_then);
}

TEST_F(HoldingGateTest, ProtectionComesAndGoes) {
  BlockTracker tracker;
  std::vector<Bytes> expected;
  for (unsigned char round = 0; round < 3; ++round) {
    SCOPED_TRACE(int{round});
    const auto value = [&](unsigned char n) { return static_cast<unsigned char>(16 * round + n); };
    gate_->track_writes(&tracker);
    EXPECT_TRUE(gate_->write(kDisk, 0, sectors(1, value(1))));
    EXPECT_EQ(image_at(0, 512), sectors(1, value(1)));
    EXPECT_EQ(tracker.take().size(), 1u);
    gate_->hold();
    gate_->track_writes(nullptr);
    EXPECT_TRUE(gate_->write(kDisk, 0, sectors(1, value(2))));
    EXPECT_TRUE(gate_->transmit(kNic, sectors(1, value(3))));
    EXPECT_TRUE(gate_->flush(kDisk));
    EXPECT_EQ(frames_, expected);
    EXPECT_EQ(image_at(0, 512), sectors(1, value(1)));
    EXPECT_EQ(guest_reads(0, 512), sectors(1, value(2)));
    const std::uint64_t epoch = 2 * round + 1u;
    gate_->seal(EpochId{epoch});
    gate_->release(EpochId{epoch});
    EXPECT_TRUE(gate_->transmit(kNic, sectors(1, value(4))));
    EXPECT_TRUE(gate_->flush(kDisk));
    gate_->seal(EpochId{epoch + 1});
    gate_->console(vmm::kSerialConsole, sectors(1, value(5)));
    gate_->pass();
    expected.push_back(sectors(1, value(3)));
    expected.push_back(sectors(1, value(4)));
    EXPECT_EQ(frames_, expected);
    EXPECT_EQ(image_at(0, 512), sectors(1, value(2)));
    EXPECT_EQ(console_.size(), 512u * (round + 1u));
    EXPECT_EQ(gate_->held_bytes(), 0u);
    // Told by the image writer's thread, after what waits for it has gone on.
    for (int i = 0; i < 1000 && durable_ != epoch + 1; ++i) std::this_thread::sleep_for(1ms);
    EXPECT_EQ(durable_, epoch + 1);
  }
}

TEST_F(HoldingGateTest, NotesTheBlocksWrittenDuringFullSync) {
  BlockTracker tracker;
  gate_->track_writes(&tracker);
  EXPECT_TRUE(gate_->write(kDisk, kSyncBlockSize - 512, sectors(2, 1)));
  gate_->hold();
  gate_->track_writes(nullptr);
  EXPECT_EQ(tracker.take(), (std::vector<BlockRef>{{kDisk, 0}, {kDisk, 1}}));
  EXPECT_TRUE(tracker.take().empty());
}

TEST_F(HoldingGateTest, ReadersAndWritersRaceWithReleases) {
  gate_->hold();
  std::atomic<bool> done = false;
  std::thread reader([&] {
    while (!done) {
      // Whole sectors, so never a mixture: the write, or what was before it.
      const Bytes seen = guest_reads(0, 512);
      EXPECT_TRUE(std::equal(seen.begin() + 1, seen.end(), seen.begin()));
    }
  });
  for (std::uint64_t epoch = 1; epoch <= 200; ++epoch) {
    EXPECT_TRUE(gate_->write(kDisk, 0, sectors(1, static_cast<unsigned char>(epoch))));
    gate_->seal(EpochId{epoch});
    gate_->release(EpochId{epoch});
    EXPECT_EQ(guest_reads(0, 512), sectors(1, static_cast<unsigned char>(epoch)));
  }
  done = true;
  reader.join();
}

// Writers, each on its own part of the disk, a NIC, and an engine that cuts epochs, commits them late, loses protection
// and finds it again. Each writer always reads what it wrote; in the end the image holds what the writers' models say,
// and every frame has left once and in order.
TEST_F(HoldingGateTest, UnderStressNothingIsLostReorderedOrTorn) {
  constexpr std::uint64_t kWriters = 3;
  constexpr std::uint64_t kPart = kDiskSize / 8;
  constexpr int kCycles = 6;
  constexpr std::uint64_t kEpochsPerCycle = 40;
  constexpr std::uint64_t kHeldLimit = 32 << 10;
  make_gate(kHeldLimit);
  std::atomic<bool> done = false;
  std::atomic<std::uint64_t> operations = 0;
  std::array<Bytes, kWriters> models;
  std::vector<std::thread> threads;
  for (std::uint64_t writer = 0; writer < kWriters; ++writer) {
    threads.emplace_back([&, writer] {
      Bytes& model = models.at(writer);
      model.resize(kPart);
      std::mt19937_64 random(writer);
      while (!done) {
        const std::uint64_t sector = random() % (kPart / 512);
        const std::uint64_t count = std::min<std::uint64_t>(1 + random() % 16, kPart / 512 - sector);
        const std::uint64_t at = sector * 512;
        const std::uint64_t kind = random() % 8;
        const Bytes data = sectors(count, kind == 0 ? 0 : static_cast<unsigned char>(random()));
        const std::uint64_t offset = writer * kPart + at;
        ASSERT_TRUE(kind == 0 ? gate_->discard(kDisk, offset, data.size()) : gate_->write(kDisk, offset, data));
        std::copy(data.begin(), data.end(), model.begin() + static_cast<std::ptrdiff_t>(at));
        EXPECT_TRUE(kind != 1 || gate_->flush(kDisk));
        ++operations;
        const std::uint64_t from = random() % (kPart / 512) * 512;
        const std::uint64_t length = std::min<std::uint64_t>(16 * 512, kPart - from);
        const Bytes seen = guest_reads(writer * kPart + from, length);
        ASSERT_EQ(std::memcmp(seen.data(), model.data() + from, length), 0);
      }
    });
  }
  std::uint64_t frames_sent = 0;
  threads.emplace_back([&] {
    while (!done) {
      const ByteView number = bytes_of(frames_sent);
      if (gate_->transmit(kNic, number)) ++frames_sent;
    }
  });

  std::mt19937_64 random(99);
  std::uint64_t epoch = 0;
  for (int cycle = 0; cycle < kCycles; ++cycle) {
    gate_->hold();
    std::uint64_t released = epoch;
    for (std::uint64_t i = 0; i < kEpochsPerCycle; ++i) {
      // An epoch with something in it: some operations, or as much as may be held before somebody has to wait.
      const std::uint64_t before = operations;
      while (operations < before + 10 && gate_->held_bytes() < kHeldLimit / 2) std::this_thread::yield();
      gate_->seal(EpochId{++epoch});
      if (epoch - released > random() % 4) gate_->release(EpochId{released = epoch});
    }
    gate_->pass();
  }
  done = true;
  for (std::thread& thread : threads) thread.join();
  gate_->drain();
  for (std::uint64_t writer = 0; writer < kWriters; ++writer) {
    EXPECT_EQ(image_at(writer * kPart, kPart), models.at(writer)) << "writer " << writer;
  }
  ASSERT_EQ(frames_.size(), frames_sent);
  for (std::uint64_t i = 0; i < frames_sent; ++i) ASSERT_TRUE(std::ranges::equal(frames_[i], bytes_of(i)));
  EXPECT_EQ(gate_->held_bytes(), 0u);
}

}  // namespace
}  // namespace pollux::primary
