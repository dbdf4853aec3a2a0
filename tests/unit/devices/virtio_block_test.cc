#include "vmm/devices/virtio/virtio_block.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>

#include "tests/unit/devices/fake_guest.h"
#include "vmm/gates/pass_through.h"

namespace pollux::vmm {
namespace {

using namespace testing;

constexpr std::uint64_t kDiskBytes = 1 << 20;
constexpr std::uint64_t kSectors = kDiskBytes / kSectorSize;
constexpr std::uint64_t kFlushFeature = feature_bit(9);
constexpr std::uint64_t kDiscardFeature = feature_bit(13);
constexpr std::uint64_t kZeroesFeature = feature_bit(14);
constexpr std::uint64_t kFeatures = kFlushFeature | kDiscardFeature | kZeroesFeature;

enum Type : std::uint32_t { kIn = 0, kOut = 1, kFlush = 4, kGetId = 8, kDiscard = 11, kZeroes = 13 };
constexpr int kOk = 0;
constexpr int kIoError = 1;
constexpr int kUnsupported = 2;
constexpr int kPending = 0xff;

struct Header {
  std::uint32_t type;
  std::uint32_t reserved;
  std::uint64_t sector;
};
struct DiscardRange {
  std::uint64_t sector;
  std::uint32_t sectors;
  std::uint32_t flags;
};

// A request on its way; the status byte shows whether it completed.
struct Pending {
  std::uint16_t head;
  Buffer data;
  Buffer status;
};

// A disk device with its driver, on a gate and memory that may outlive it.
struct Disk {
  Disk(GuestMemory& guest, OutputGate& gate, EventLoop* loop, bool read_only = false)
      : memory(guest),
        device("disk 0", std::make_unique<VirtioBlock>(DiskIndex{0}, DiskConfig{kDiskBytes, read_only}, gate),
               guest, line, loop),
        driver(device, guest) {}

  Pending submit(std::uint32_t type, std::uint64_t sector, const Buffer& data) {
    const Header header{type, 0, sector};
    Buffer status = driver.input(1);
    EXPECT_TRUE(memory.write({status.address}, Bytes(1, std::byte{kPending})));
    std::vector<Buffer> buffers{driver.output(bytes_of(header))};
    if (data.length > 0) buffers.push_back(data);
    buffers.push_back(status);
    const std::uint16_t head = driver.ring().add(buffers);
    driver.kick();
    return {head, data, status};
  }
  int status_of(const Pending& pending) {
    return std::to_integer<int>(driver.contents(pending.status).front());
  }
  int request(std::uint32_t type, std::uint64_t sector, const Buffer& data) {
    return status_of(submit(type, sector, data));
  }
  int write(std::uint64_t sector, ByteView bytes) { return request(kOut, sector, driver.output(bytes)); }
  int discard(std::uint32_t type, const DiscardRange& range) {
    return request(type, 0, driver.output(bytes_of(range)));
  }

  GuestMemory& memory;
  CountingLine line;
  VirtioMmio device;
  FakeDriver driver;
};

class VirtioBlockTest : public ::testing::Test {
 protected:
  GuestMemory memory_{kGuestBytes};
  FakeOutput gate_{kDiskBytes};
  Disk disk_{memory_, gate_, nullptr};
};

TEST_F(VirtioBlockTest, ConfigurationTellsTheLimits) {
  std::uint64_t capacity = 0;
  disk_.device.read(0x100, mutable_bytes_of(capacity));
  EXPECT_EQ(capacity, kSectors);
  EXPECT_EQ(disk_.driver.get(0x108), VirtioBlock::kMaxSegmentBytes);
  EXPECT_EQ(disk_.driver.get(0x10c), VirtioBlock::kMaxSegments);
  EXPECT_EQ(disk_.driver.get(0x114), 512u);
  EXPECT_EQ(disk_.driver.offered() & kFeatures, kFeatures);
}

TEST_F(VirtioBlockTest, WritesAndReadsBack) {
  disk_.driver.start(kFeatures);
  const Bytes data = pattern(8192, 1);
  EXPECT_EQ(disk_.write(3, data), kOk);
  EXPECT_EQ(gate_.disk(3 * 512, data.size()), data);
  auto used = disk_.driver.ring().take_used();
  ASSERT_TRUE(used);
  EXPECT_EQ(used->written, 1u);

  const Pending read = disk_.submit(kIn, 3, disk_.driver.input(data.size()));
  EXPECT_EQ(disk_.status_of(read), kOk);
  EXPECT_EQ(disk_.driver.contents(read.data), data);
  used = disk_.driver.ring().take_used();
  ASSERT_TRUE(used);
  EXPECT_EQ(used->head, read.head);
  EXPECT_EQ(used->written, data.size() + 1);
  EXPECT_EQ(gate_.calls("flush"), 0u);
}

TEST_F(VirtioBlockTest, AnyFramingIsAccepted) {
  disk_.driver.start(kFeatures);
  // Header and data in one buffer; and a status byte in the same buffer as the data (2.7.4).
  const Header header{kOut, 0, 1};
  Bytes request(bytes_of(header).begin(), bytes_of(header).end());
  const Bytes data = pattern(512, 2);
  request.insert(request.end(), data.begin(), data.end());
  disk_.driver.ring().add({disk_.driver.output(request), disk_.driver.input(1)});
  const Header read{kIn, 0, 1};
  const Buffer both = disk_.driver.input(513);
  const auto header_bytes = bytes_of(read);
  disk_.driver.ring().add(
      {disk_.driver.output(header_bytes.first(7)), disk_.driver.output(header_bytes.subspan(7)), both});
  disk_.driver.kick();
  EXPECT_EQ(gate_.disk(512, 512), data);
  Bytes expected = data;
  expected.push_back(std::byte{kOk});
  EXPECT_EQ(disk_.driver.contents(both), expected);
}

TEST_F(VirtioBlockTest, WriteIsStableForADriverThatDoesNotFlush) {
  disk_.driver.start(0);
  EXPECT_EQ(disk_.write(0, pattern(512, 1)), kOk);
  EXPECT_EQ(gate_.calls("flush"), 1u);
}

TEST_F(VirtioBlockTest, Flushes) {
  disk_.driver.start(kFeatures);
  EXPECT_EQ(disk_.request(kFlush, 0, {}), kOk);
  EXPECT_EQ(gate_.calls("flush"), 1u);
}

TEST_F(VirtioBlockTest, DiscardsAndZeroes) {
  disk_.driver.start(kFeatures);
  const Bytes data = pattern(4096, 3);
  ASSERT_EQ(disk_.write(0, data), kOk);
  EXPECT_EQ(disk_.discard(kDiscard, {1, 2, 0}), kOk);
  EXPECT_EQ(gate_.disk(512, 1024), Bytes(1024));
  EXPECT_EQ(disk_.discard(kZeroes, {4, 1, 1}), kOk);
  EXPECT_EQ(gate_.calls("discard"), 2u);
  EXPECT_EQ(disk_.discard(kZeroes, {5, 1, 0}), kOk);  // may not deallocate
  EXPECT_EQ(gate_.calls("discard"), 2u);
  EXPECT_EQ(gate_.disk(2048, 1024), Bytes(1024));
  EXPECT_EQ(gate_.disk(3072, 1024), Bytes(data.begin() + 3072, data.end()));
}

TEST_F(VirtioBlockTest, BadDiscardsAreRefused) {
  disk_.driver.start(kFeatures);
  EXPECT_EQ(disk_.discard(kDiscard, {kSectors, 1, 0}), kIoError);
  EXPECT_EQ(disk_.discard(kDiscard, {~std::uint64_t{0}, 2, 0}), kIoError);
  EXPECT_EQ(disk_.discard(kDiscard, {0, ~0u, 0}), kIoError);
  EXPECT_EQ(disk_.discard(kDiscard, {0, 1, 1}), kUnsupported);
  EXPECT_EQ(disk_.discard(kZeroes, {0, 1, 2}), kUnsupported);
  EXPECT_EQ(disk_.request(kDiscard, 0, {}), kIoError);
  EXPECT_EQ(disk_.request(kDiscard, 0, disk_.driver.output(Bytes(17))), kIoError);
  EXPECT_EQ(disk_.request(kDiscard, 0, disk_.driver.output(Bytes(16 * 17))), kIoError);
  EXPECT_EQ(gate_.calls("discard"), 0u);
  EXPECT_FALSE(disk_.driver.needs_reset());
}

TEST_F(VirtioBlockTest, DiscardNeedsItsFeature) {
  disk_.driver.start(kFlushFeature);
  EXPECT_EQ(disk_.discard(kDiscard, {0, 1, 0}), kUnsupported);
}

TEST_F(VirtioBlockTest, TellsItsId) {
  disk_.driver.start(kFeatures);
  const Pending id = disk_.submit(kGetId, 0, disk_.driver.input(VirtioBlock::kIdBytes));
  EXPECT_EQ(disk_.status_of(id), kOk);
  EXPECT_STREQ(reinterpret_cast<const char*>(disk_.driver.contents(id.data).data()), "pollux-disk-0");
}

TEST_F(VirtioBlockTest, UnknownRequestIsUnsupported) {
  disk_.driver.start(kFeatures);
  EXPECT_EQ(disk_.request(99, 0, disk_.driver.input(512)), kUnsupported);
}

TEST_F(VirtioBlockTest, BadTransfersAreRefused) {
  disk_.driver.start(kFeatures);
  EXPECT_EQ(disk_.write(kSectors, Bytes(512)), kIoError);
  EXPECT_EQ(disk_.write(kSectors - 1, Bytes(1024)), kIoError);
  EXPECT_EQ(disk_.write(~std::uint64_t{0}, Bytes(512)), kIoError);
  EXPECT_EQ(disk_.write(std::uint64_t{1} << 55, Bytes(512)), kIoError);  // times 512 wraps to 0
  EXPECT_EQ(disk_.write(0, Bytes(511)), kIoError);
  EXPECT_EQ(disk_.request(kIn, kSectors, disk_.driver.input(512)), kIoError);
  EXPECT_EQ(disk_.request(kIn, 0, disk_.driver.input(VirtioBlock::kMaxRequestBytes + 512)), kIoError);
  EXPECT_EQ(gate_.calls("write") + gate_.calls("read"), 0u);
  EXPECT_EQ(disk_.request(kIn, kSectors, {}), kOk);  // nothing asked, nothing done
  EXPECT_FALSE(disk_.driver.needs_reset());
}

TEST_F(VirtioBlockTest, GateErrorsReachTheDriver) {
  disk_.driver.start(kFeatures);
  gate_.fail(true);
  EXPECT_EQ(disk_.write(0, Bytes(512)), kIoError);
  EXPECT_EQ(disk_.request(kIn, 0, disk_.driver.input(512)), kIoError);
  EXPECT_EQ(disk_.request(kFlush, 0, {}), kIoError);
}

TEST_F(VirtioBlockTest, MissingStatusNeedsReset) {
  disk_.driver.start(kFeatures);
  const Header header{kOut, 0, 0};
  disk_.driver.ring().add({disk_.driver.output(bytes_of(header)), disk_.driver.output(Bytes(512))});
  disk_.driver.kick();
  EXPECT_TRUE(disk_.driver.needs_reset());
}

TEST_F(VirtioBlockTest, ShortHeaderNeedsReset) {
  disk_.driver.start(kFeatures);
  disk_.driver.ring().add({disk_.driver.output(Bytes(15)), disk_.driver.input(1)});
  disk_.driver.kick();
  EXPECT_TRUE(disk_.driver.needs_reset());
}

TEST(VirtioBlockReadOnlyTest, RefusesChanges) {
  GuestMemory memory(kGuestBytes);
  FakeOutput gate(kDiskBytes);
  Disk disk(memory, gate, nullptr, true);
  EXPECT_TRUE(disk.driver.offered() & feature_bit(5));
  EXPECT_FALSE(disk.driver.offered() & kDiscardFeature);
  disk.driver.start(kFlushFeature | feature_bit(5));
  EXPECT_EQ(disk.write(0, Bytes(512)), kIoError);
  EXPECT_EQ(disk.discard(kDiscard, {0, 1, 0}), kUnsupported);
  EXPECT_EQ(disk.request(kIn, 0, disk.driver.input(512)), kOk);
  EXPECT_EQ(gate.calls("write"), 0u);
}

TEST(VirtioBlockImageTest, RoundTripOnAnImage) {
  const std::string path =
      std::filesystem::temp_directory_path() / ("pollux-blk-" + std::to_string(::getpid()));
  Fd file(::creat(path.c_str(), 0600));
  ASSERT_EQ(::ftruncate(file.get(), kDiskBytes), 0);
  std::vector<std::unique_ptr<Image>> images;
  images.push_back(std::make_unique<Image>(path, false));
  Backends backends(std::move(images), {}, open_console("none", [] {}), open_console("none", [] {}));
  PassThroughOutput gate(backends);
  GuestMemory memory(kGuestBytes);
  Disk disk(memory, gate, nullptr);
  disk.driver.start(kFeatures, 128);
  const Bytes data = pattern(300 * 512, 9);
  EXPECT_EQ(disk.write(100, data), kOk);
  EXPECT_EQ(disk.request(kFlush, 0, {}), kOk);
  EXPECT_EQ(disk.discard(kDiscard, {100, 8, 0}), kOk);
  const Pending read = disk.submit(kIn, 100, disk.driver.input(data.size()));
  EXPECT_EQ(disk.status_of(read), kOk);
  Bytes expected = data;
  std::fill_n(expected.begin(), 8 * 512, std::byte{0});
  EXPECT_EQ(disk.driver.contents(read.data), expected);
  std::filesystem::remove(path);
}

// --- Outstanding requests ---

class OutstandingTest : public ::testing::Test {
 protected:
  ~OutstandingTest() override {
    gate_.hold(false);
    disk_.device.retire();
    loop_.stop();
  }
  void submit_and_hold(std::uint32_t type, const Buffer& data) {
    gate_.hold(true);
    pending_ = disk_.submit(type, 0, data);
    ASSERT_TRUE(eventually([&] { return gate_.waiting(); }));
  }
  // Only after the completion is seen in the used ring, which is what orders the two sides.
  bool completed() {
    return eventually([&] { return disk_.driver.ring().take_used().has_value(); });
  }

  GuestMemory memory_{kGuestBytes};
  FakeOutput gate_{kDiskBytes};
  EventLoop loop_{"disk"};
  Disk disk_{memory_, gate_, &loop_};
  Pending pending_{};
};

TEST_F(OutstandingTest, PauseDoesNotWaitForTheDisk) {
  disk_.driver.start(kFeatures);
  submit_and_hold(kIn, disk_.driver.input(512));
  disk_.device.freeze();
  gate_.hold(false);
  ASSERT_TRUE(eventually([&] { return gate_.calls("read") == 1; }));
  std::this_thread::sleep_for(std::chrono::milliseconds(20));
  EXPECT_EQ(disk_.status_of(pending_), kPending);
  EXPECT_FALSE(disk_.driver.ring().take_used());
  disk_.device.thaw();
  ASSERT_TRUE(completed());
  EXPECT_EQ(disk_.status_of(pending_), kOk);
}

TEST_F(OutstandingTest, RestoredDeviceIssuesItAgain) {
  disk_.driver.start(kFeatures);
  const Bytes data = pattern(1024, 4);
  submit_and_hold(kOut, disk_.driver.output(data));
  disk_.device.freeze();
  SavedDevice saved(disk_.device, SavedDevice::AlreadyFrozen{});
  ASSERT_EQ(saved.state().getFunction().getBlock().getOutstanding().size(), 1u);
  EXPECT_EQ(saved.state().getFunction().getBlock().getOutstanding()[0], pending_.head);

  // Another host: the same memory, another disk.
  FakeOutput gate(kDiskBytes);
  Disk restored(memory_, gate, nullptr);
  restored.device.restore(saved.state().asReader());
  restored.device.resume_after_restore();
  EXPECT_EQ(gate.calls("write"), 1u);
  EXPECT_EQ(gate.disk(0, data.size()), data);
  EXPECT_EQ(disk_.status_of(pending_), kOk);
  const auto used = disk_.driver.ring().take_used();
  ASSERT_TRUE(used);
  EXPECT_EQ(used->head, pending_.head);
  EXPECT_EQ(SavedDevice(restored.device).state().getFunction().getBlock().getOutstanding().size(), 0u);
}

TEST_F(OutstandingTest, RestoredAndSavedAgainBeforeItRan) {
  disk_.driver.start(kFeatures);
  submit_and_hold(kOut, disk_.driver.output(pattern(512, 5)));
  disk_.device.freeze();
  SavedDevice saved(disk_.device, SavedDevice::AlreadyFrozen{});
  FakeOutput gate(kDiskBytes);
  Disk restored(memory_, gate, nullptr);
  restored.device.restore(saved.state().asReader());
  EXPECT_EQ(SavedDevice(restored.device).state().getFunction().getBlock().getOutstanding().size(), 1u);
}

TEST_F(OutstandingTest, ImpossibleOutstandingHeadIsRefused) {
  disk_.driver.start(kFeatures);
  SavedDevice saved(disk_.device);
  saved.state().getFunction().initBlock().initOutstanding(1).set(0, 999);
  Disk restored(memory_, gate_, nullptr);
  EXPECT_THROW(restored.device.restore(saved.state().asReader()), Error);
}

TEST_F(OutstandingTest, ResetDropsTheCompletion) {
  disk_.driver.start(kFeatures);
  submit_and_hold(kIn, disk_.driver.input(512));
  disk_.driver.set(0x070, 0);
  gate_.hold(false);
  ASSERT_TRUE(eventually([&] { return gate_.calls("read") == 1; }));
  std::this_thread::sleep_for(std::chrono::milliseconds(10));
  EXPECT_EQ(disk_.status_of(pending_), kPending);
  EXPECT_FALSE(disk_.driver.ring().take_used());
}

TEST_F(OutstandingTest, NewDriverIsServedAfterTheOldOnesRequestLeftTheGate) {
  disk_.driver.start(kFeatures);
  submit_and_hold(kOut, disk_.driver.output(pattern(512, 6)));
  disk_.driver.start(kFeatures);
  const Bytes data = pattern(512, 7);
  const Pending fresh = disk_.submit(kOut, 0, disk_.driver.output(data));
  gate_.hold(false);
  ASSERT_TRUE(completed());
  EXPECT_EQ(disk_.status_of(fresh), kOk);
  EXPECT_EQ(gate_.disk(0, 512), data);  // in order: never the old driver's bytes over the new one's
  EXPECT_FALSE(disk_.driver.ring().take_used());
}

TEST_F(OutstandingTest, ManyRequestsWhileTheMachinePausesAgainAndAgain) {
  disk_.driver.start(kFeatures | kEventIndexFeature, 64);
  std::atomic<bool> done = false;
  std::thread pauser([&] {
    while (!done) {
      disk_.device.freeze();
      SavedDevice saved(disk_.device, SavedDevice::AlreadyFrozen{});
      disk_.device.thaw();
      std::this_thread::yield();
    }
  });
  for (unsigned i = 0; i < 500; ++i) {
    if (i % 64 == 0) disk_.driver.start(kFeatures | kEventIndexFeature, 64);  // frees the driver's heap
    const Bytes data = pattern(512, i);
    const Pending write = disk_.submit(kOut, i % kSectors, disk_.driver.output(data));
    ASSERT_TRUE(completed()) << i;
    EXPECT_EQ(disk_.status_of(write), kOk);
    EXPECT_EQ(gate_.disk(i % kSectors * 512, 512), data);
  }
  done = true;
  pauser.join();
}

}  // namespace
}  // namespace pollux::vmm
