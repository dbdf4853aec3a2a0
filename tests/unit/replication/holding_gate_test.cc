#include "primary/holding_gate.h"

#include <gtest/gtest.h>
#include <stdlib.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <future>
#include <thread>

#include "base/error.h"

namespace pollux::primary {
namespace {

using namespace std::chrono_literals;
using protocol::EpochId;

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
    char path[] = "/tmp/pollux-gate-XXXXXX";
    const int fd = ::mkstemp(path);
    POLLUX_ASSERT(fd >= 0 && ::ftruncate(fd, kDiskSize) == 0);
    ::close(fd);
    path_ = path;
    std::vector<std::unique_ptr<vmm::Image>> disks;
    disks.push_back(std::make_unique<vmm::Image>(path_, false));
    std::vector<std::unique_ptr<vmm::Nic>> nics;
    nics.push_back(std::make_unique<RecordingNic>(frames_));
    backends_ = std::make_unique<vmm::Backends>(std::move(disks), std::move(nics),
                                                std::make_unique<RecordingConsole>(console_),
                                                vmm::open_console("none", [] {}));
    make_gate(kDiskSize);
  }
  ~HoldingGateTest() override {
    gate_.reset();
    ::unlink(path_.c_str());
  }

  void make_gate(std::uint64_t held_limit) {
    gate_ = std::make_unique<HoldingGate>(*backends_, held_limit,
                                          HoldingGate::Callbacks{.durable = [this](EpochId epoch) { durable_ = epoch.value; },
                                                                 .image_failed = [](const std::string&) {}});
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

  std::string path_;
  std::vector<Bytes> frames_;
  Bytes console_;
  std::atomic<std::uint64_t> durable_ = 0;
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

}  // namespace
}  // namespace pollux::primary
