// A driver that writes garbage into registers, rings, descriptors and buffers: nothing may crash, hang or
// reach outside of guest memory (which the sanitizers watch). A failure is one number: the seed.
#include <gtest/gtest.h>
#include <spdlog/spdlog.h>

#include <chrono>
#include <deque>
#include <random>

#include "tests/unit/devices/fake_guest.h"
#include "vmm/devices/virtio/virtio_block.h"
#include "vmm/devices/virtio/virtio_console.h"
#include "vmm/devices/virtio/virtio_entropy.h"
#include "vmm/devices/virtio/virtio_net.h"

namespace pollux::vmm {
namespace {

using namespace testing;

constexpr std::uint64_t kSmallGuest = 1 << 20;
constexpr std::uint64_t kDiskBytes = 64 * 1024;
constexpr unsigned kStepsPerSeed = 300;
constexpr std::chrono::milliseconds kTimePerDevice{400};

class Hostile {
 public:
  Hostile(std::uint64_t seed, VirtioMmio& device, GuestMemory& memory)
      : random_(seed), device_(device), memory_(memory), driver_(device, memory) {}

  void step() {
    switch (below(12)) {
      case 0: return driver_.set(4 * below(0x90), word());
      case 1: return odd_access();
      case 2: return start();
      case 3: return reset_or_status();
      case 4:
      case 5: return garbage();
      case 6:
      case 7: return plausible_chain();
      case 8: return near_miss();
      case 9: return ring().set_available_index(static_cast<std::uint16_t>(below(0x10000)));
      default: return driver_.kick(below(device_.queue_count() + 1));
    }
  }
  std::uint32_t below(std::uint32_t limit) { return static_cast<std::uint32_t>(random_() % limit); }

 private:
  std::uint32_t word() {
    static constexpr std::array<std::uint32_t, 8> kInteresting = {0,           1,           2,   8,
                                                                  0x7fff'ffff, 0x8000'0000, ~0u, 0x1000};
    return below(2) ? kInteresting[below(kInteresting.size())] : static_cast<std::uint32_t>(random_());
  }
  Ring& ring() {
    if (!started_) start();
    return driver_.ring(below(device_.queue_count()));
  }
  void start() {
    std::uint64_t features = random_() & driver_.offered();
    if (below(8) == 0) features |= random_();
    size_ = static_cast<std::uint16_t>(1u << below(5));
    driver_.start(features, size_);
    started_ = true;
  }
  void reset_or_status() { driver_.set(0x070, below(4) ? word() : 0); }
  void odd_access() {
    static constexpr std::array<std::size_t, 4> kWidths = {1, 2, 4, 8};
    Bytes value(kWidths[below(4)], static_cast<std::byte>(below(256)));
    const std::uint64_t offset = below(2) ? below(0x400) : random_();
    below(2) ? device_.read(offset, value) : device_.write(offset, value);
  }
  void garbage() {
    Bytes bytes(1 + below(64));
    for (std::byte& byte : bytes) byte = static_cast<std::byte>(below(4) ? below(8) : below(256));
    const std::uint64_t address = below(4) ? FakeDriver::kRings + below(0x8000) : below(kSmallGuest);
    (void)memory_.write({address}, bytes);
  }
  // What a driver would do, with some of it wrong now and then.
  void plausible_chain() {
    Ring& target = ring();
    std::vector<Buffer> buffers;
    const std::uint32_t readable = below(4);
    const std::uint32_t total = std::min<std::uint32_t>(readable + below(4), size_);
    for (std::uint32_t i = 0; i < total; ++i) {
      const bool whole_sector = below(2) != 0;
      buffers.push_back({0x80000 + 64 * below(0x1000), whole_sector ? 512 * (1 + below(8)) : 1 + below(600),
                         i >= readable});
    }
    if (buffers.empty()) return;
    if (!buffers[0].writable) write_header(buffers[0].address);
    if (below(16) == 0) buffers[below(total)].length = word();
    if (below(16) == 0) buffers[below(total)].address = random_();
    target.add(buffers);
  }
  void write_header(std::uint64_t address) {
    static constexpr std::array<std::uint32_t, 7> kTypes = {0, 1, 4, 8, 11, 13, 99};
    const std::array<std::uint32_t, 4> header = {kTypes[below(kTypes.size())], 0, below(kDiskBytes / 512 + 2),
                                                 below(64) ? 0 : word()};
    (void)memory_.write({address}, bytes_of(header));
  }
  void near_miss() {
    const Descriptor descriptor{below(2) ? below(kSmallGuest + 64) : random_(), word(),
                                static_cast<std::uint16_t>(below(8)),
                                static_cast<std::uint16_t>(below(size_ + 1u))};
    Ring& target = ring();
    const auto index = static_cast<std::uint16_t>(below(size_));
    target.set_descriptor(index, descriptor);
    if (below(2)) target.make_available(static_cast<std::uint16_t>(below(size_ + 2u)));
  }

  std::mt19937_64 random_;
  VirtioMmio& device_;
  GuestMemory& memory_;
  FakeDriver driver_;
  std::uint16_t size_ = 1;
  bool started_ = false;
};

using Make = std::function<std::unique_ptr<VirtioFunction>(FakeOutput&, FakeInput&)>;
using Arrive = std::function<void(VirtioFunction&, Hostile&)>;

// After all of it, a reset and a well-behaved driver find a working device; and its state can be restored.
void expect_usable(VirtioMmio& device, GuestMemory& memory, const Make& make, FakeOutput& output,
                   FakeInput& input) {
  SavedDevice saved(device);
  CountingLine line;
  VirtioMmio restored("restored", make(output, input), memory, line, nullptr);
  restored.restore(saved.state().asReader());
  restored.resume_after_restore();
  FakeDriver driver(restored, memory);
  driver.start();
  EXPECT_EQ(driver.status(), 1u | 2u | 4u | 8u);
}

// kByLoop: the queues are served by a thread of their own, as in a machine, while the driver goes on.
enum class Served { kAtOnce, kByLoop };

void attack(const Make& make, const Arrive& arrive, Served served = Served::kAtOnce) {
  const auto deadline = std::chrono::steady_clock::now() + kTimePerDevice;
  std::uint64_t seed = 1;
  for (; std::chrono::steady_clock::now() < deadline; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    GuestMemory memory(kSmallGuest);
    CountingLine line;
    FakeOutput output(kDiskBytes);
    FakeInput input;
    auto owned = make(output, input);
    VirtioFunction& function = *owned;
    const auto loop = served == Served::kByLoop ? std::make_unique<EventLoop>("hostile") : nullptr;
    VirtioMmio device("hostile", std::move(owned), memory, line, loop.get());
    Hostile hostile(seed, device, memory);
    for (unsigned i = 0; i < kStepsPerSeed; ++i) {
      hostile.step();
      if (hostile.below(8) == 0) arrive(function, hostile);
    }
    expect_usable(device, memory, make, output, input);
    device.retire();
    if (loop) loop->stop();
    if (::testing::Test::HasFailure()) return;
  }
  ::testing::Test::RecordProperty("seeds", static_cast<int>(seed));
}

// Performs when it is told to. The requests of a device that is gone are let go of.
class PatientExecutor final : public BlockExecutor {
 public:
  void submit(std::function<void()> perform) override { waiting_.push_back(std::move(perform)); }
  void perform(std::size_t count) {
    for (; count > 0 && !waiting_.empty(); --count) {
      const auto next = std::move(waiting_.front());
      waiting_.pop_front();
      next();
    }
  }

 private:
  std::deque<std::function<void()>> waiting_;
};

// Each violation is a log line: too many here to be of use.
class HostileDriverTest : public ::testing::Test {
 protected:
  HostileDriverTest() { spdlog::set_level(spdlog::level::off); }
  ~HostileDriverTest() override { spdlog::set_level(spdlog::level::info); }
};

std::unique_ptr<VirtioFunction> make_disk(FakeOutput& output, FakeInput&) {
  return std::make_unique<VirtioBlock>(DiskIndex{0}, DiskConfig{kDiskBytes, false}, output);
}
std::unique_ptr<VirtioFunction> make_entropy(FakeOutput&, FakeInput& input) { return std::make_unique<VirtioEntropy>(input); }

void nothing_arrives(VirtioFunction&, Hostile&) {}

TEST_F(HostileDriverTest, Block) { attack(make_disk, nothing_arrives); }

TEST_F(HostileDriverTest, BlockServedByALoop) { attack(make_disk, nothing_arrives, Served::kByLoop); }

TEST_F(HostileDriverTest, Entropy) { attack(make_entropy, nothing_arrives); }

TEST_F(HostileDriverTest, EntropyServedByALoop) { attack(make_entropy, nothing_arrives, Served::kByLoop); }

TEST_F(HostileDriverTest, ADeferringDisk) {
  PatientExecutor executor;
  std::uint64_t completed = 0;
  attack(
      [&](FakeOutput& output, FakeInput&) {
        executor = PatientExecutor();  // the device before is gone
        return std::make_unique<VirtioBlock>(DiskIndex{0}, DiskConfig{kDiskBytes, false}, output, &executor);
      },
      [&](VirtioFunction& function, Hostile& hostile) {
        auto& disk = dynamic_cast<VirtioBlock&>(function);
        executor.perform(hostile.below(8));
        if (hostile.below(4) == 0) disk.settle();
        if (hostile.below(16) == 0) disk.make_uncertain();
        for (const BlockCompletion& completion : disk.performed()) {
          ASSERT_TRUE(is_block_status(completion.status));
          ASSERT_EQ(disk.complete(completion), VirtioBlock::Completed::kYes);
          ++completed;
        }
        ASSERT_LE(disk.outstanding(), VirtioBlock::kMaxOutstanding);
      });
  EXPECT_GT(completed, 0u);
}

TEST_F(HostileDriverTest, Net) {
  attack(
      [](FakeOutput& output, FakeInput&) {
        return std::make_unique<VirtioNet>(NicIndex{0}, NicConfig{{2, 0, 0, 0, 0, 1}}, output);
      },
      [](VirtioFunction& function, Hostile& hostile) {
        dynamic_cast<VirtioNet&>(function).deliver(Bytes(hostile.below(kMaxFrame + 2)));
      });
}

TEST_F(HostileDriverTest, Console) {
  attack([](FakeOutput& output, FakeInput&) { return std::make_unique<VirtioConsole>(output); },
         [](VirtioFunction& function, Hostile& hostile) {
           dynamic_cast<VirtioConsole&>(function).deliver(Bytes(hostile.below(100)));
         });
}

}  // namespace
}  // namespace pollux::vmm
