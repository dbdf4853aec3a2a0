// A primary and a backup in one process on the real /dev/kvm, each with a disk. The guest (page_writer)
// leaves its disk alone, so what it would write is written by the test, through the primary's output gate.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <spdlog/spdlog.h>

#include <atomic>
#include <future>
#include <random>
#include <thread>

#include "backup/backup.h"
#include "base/error.h"
#include "primary/epoch_engine.h"
#include "primary/full_sync.h"
#include "primary/primary.h"
#include "tests/support/controlled_image.h"
#include "tests/support/temporary_folder.h"
#include "tests/support/test_machine.h"
#include "vmm/make_machine.h"

namespace pollux::testing {
namespace {

using namespace std::chrono_literals;
using primary::kSyncBlockSize;
using protocol::session::SecretKey;

constexpr std::uint64_t kMemoryBytes = 64 << 20;
// More blocks than one digest request asks for (64), and a last one that is shorter.
constexpr std::uint64_t kBlocks = 100;
constexpr std::uint64_t kDiskBytes = (kBlocks - 1) * kSyncBlockSize + 3 * 512;
constexpr std::uint64_t kLastBlock = kBlocks - 1;

// One host's disk.
struct HostDisk {
  HostDisk(const TemporaryFolder& folder, const std::string& name) {
    auto owned = std::make_unique<ControlledImage>(folder.make_file(name, kDiskBytes));
    image = owned.get();
    std::vector<std::unique_ptr<vmm::Image>> disks;
    disks.push_back(std::move(owned));
    backends =
        std::make_unique<vmm::Backends>(std::move(disks), std::vector<std::unique_ptr<vmm::Nic>>{},
                                        vmm::open_console("none", [] {}), vmm::open_console("none", [] {}));
  }

  void fill_block(std::uint64_t block, unsigned value) const {
    const std::uint64_t offset = block * kSyncBlockSize;
    const Bytes data(std::min(kSyncBlockSize, kDiskBytes - offset), static_cast<std::byte>(value));
    ASSERT_TRUE(image->write(offset, data));
  }
  [[nodiscard]] Bytes contents() const { return contents_of(image->path()); }

  ControlledImage* image = nullptr;  // of backends
  std::unique_ptr<vmm::Backends> backends;
};

// Writes, discards, flushes and reads at random as a guest's driver would, as soon as there is a gate; knows what the disk
// must hold.
class DiskWriter {
 public:
  explicit DiskWriter(const std::atomic<vmm::OutputGate*>& gate) : thread_([this, &gate] { run(gate); }) {}
  ~DiskWriter() { stop(); }

  // What the disk must hold now; the last flush speaks for it.
  const Bytes& stop() {
    done_ = true;
    if (thread_.joinable()) thread_.join();
    return model_;
  }

 private:
  void run(const std::atomic<vmm::OutputGate*>& gate_when_there) {
    while (gate_when_there == nullptr) {
      if (done_) return;
      std::this_thread::yield();
    }
    vmm::OutputGate& gate = *gate_when_there;
    std::mt19937_64 random(3);
    while (!done_) {
      const std::uint64_t sector = random() % (kDiskBytes / 512);
      const std::uint64_t length = 512 * std::min<std::uint64_t>(1 + random() % 32, kDiskBytes / 512 - sector);
      const bool discard = random() % 4 == 0;
      const Bytes data(length, static_cast<std::byte>(discard ? 0 : random()));
      EXPECT_TRUE(discard ? gate.discard({0}, sector * 512, length) : gate.write({0}, sector * 512, data));
      std::copy(data.begin(), data.end(), model_.begin() + static_cast<std::ptrdiff_t>(sector * 512));
      EXPECT_TRUE(random() % 64 != 0 || gate.flush({0}));
      Bytes seen(length);
      EXPECT_TRUE(gate.read({0}, sector * 512, seen));
      EXPECT_EQ(seen, data);
    }
    EXPECT_TRUE(gate.flush({0}));  // what is committed after it is on the backups' disks
  }

  std::atomic<bool> done_ = false;
  Bytes model_ = Bytes(kDiskBytes);
  std::thread thread_;
};

std::unique_ptr<vmm::Machine> boot(vmm::Backends& backends, vmm::InputGate& input, vmm::OutputGate& output) {
  vmm::MachineConfig config = page_writer_config(kMemoryBytes);
  config.disks.push_back({kDiskBytes, false});
  return vmm::boot_machine(config, page_writer_source(), backends, input, output);
}

class FullSyncTest : public ::testing::Test {
 protected:
  void SetUp() override {
    if (const std::string why = why_no_kvm(); !why.empty()) GTEST_SKIP() << why;
    spdlog::set_level(spdlog::level::warn);
    protocol::session::initialize_crypto();
    primary_key_ = SecretKey::generate();
    backup_key_ = SecretKey::generate();
  }
  void TearDown() override { stop(); }

  // Returns when epochs are being committed.
  void protect() {
    backup::BackupOptions backup_options;
    backup_options.listen = {"127.0.0.1", 0};
    backup_options.primary_keys = {primary_key_->public_key()};
    backup_options.silence_timeout = 20s;
    backup_ = std::make_unique<backup::Backup>(backup_options, *backup_key_);
    backup_end_ = std::async(std::launch::async, [this] { return backup_->run(*backup_disk_.backends); });

    primary::PrimaryOptions options;
    options.backups.push_back({{"127.0.0.1", backup_->port()}, backup_key_->public_key()});
    options.epoch_length = epoch_length_;
    options.claim = claim_;
    options.silence_timeout = 20s;
    listener_ = std::make_shared<protocol::Listener>(protocol::Address{"127.0.0.1", 0}, *primary_key_,
                                                     std::vector{backup_key_->public_key()});
    options.listener = listener_;
    primary_ = std::make_unique<primary::Primary>(options);
    primary_end_ = std::async(std::launch::async, [this] {
      return primary_->run(*primary_key_, *primary_disk_.backends, [this](vmm::OutputGate& output) {
        auto machine = boot(*primary_disk_.backends, input_, output);
        if (cycled_pages_ > 0) PageWriter(machine->memory()).request(guests::WriterMode::kCycle, cycled_pages_);
        memory_ = &machine->memory();
        gate_ = &output;
        return machine;
      });
    });
    ASSERT_TRUE(eventually([this] { return primary_->statistics().summary().committed.value > 0; }));
  }
  // Another backup, with the key of the first.
  void begin_to_join() {
    backup::BackupOptions options;
    options.join = {{{"127.0.0.1", listener_->port()}, primary_key_->public_key()}};
    options.primary_keys = {primary_key_->public_key()};
    options.silence_timeout = 20s;
    joiner_ = std::make_unique<backup::Backup>(options, *backup_key_);
    joiner_end_ = std::async(std::launch::async, [this] { return joiner_->run(*joiner_disk_.backends); });
  }
  // Returns when it can take over, too.
  void join() {
    begin_to_join();
    ASSERT_TRUE(eventually([this] { return primary_->statistics().summary().backups == 2; }, 120s));
  }
  // An orderly end of all.
  void stop() {
    if (primary_end_.valid()) {
      primary_->stop();
      EXPECT_EQ(primary_end_.get().reason, vmm::ExitReason::kRequested);
    }
    for (std::future<backup::BackupEnd>* backup_end : {&backup_end_, &joiner_end_}) {
      if (!backup_end->valid()) continue;
      const backup::BackupEnd end = backup_end->get();
      EXPECT_FALSE(end.failed) << end.reason;
      EXPECT_FALSE(end.promotion.has_value());
    }
  }
  void let_epochs_go_by() {
    const auto committed = [this] { return primary_->statistics().summary().committed.value; };
    const std::uint64_t before = committed();
    EXPECT_TRUE(eventually([&] { return committed() > before + 20; }));
  }

  std::chrono::milliseconds epoch_length_ = 5ms;
  std::uint64_t cycled_pages_ = 0;  // that the guest writes over and over
  protocol::Claim claim_;
  TemporaryFolder folder_;
  HostDisk primary_disk_{folder_, "primary"};
  HostDisk backup_disk_{folder_, "backup"};
  HostDisk joiner_disk_{folder_, "joiner"};
  std::optional<SecretKey> primary_key_;
  std::optional<SecretKey> backup_key_;
  vmm::PassThroughInput input_;
  std::shared_ptr<protocol::Listener> listener_;
  std::unique_ptr<backup::Backup> backup_;
  std::unique_ptr<backup::Backup> joiner_;
  std::unique_ptr<primary::Primary> primary_;
  std::atomic<vmm::OutputGate*> gate_ = nullptr;  // while the primary runs
  vmm::GuestMemory* memory_ = nullptr;            // the same
  std::future<backup::BackupEnd> backup_end_;
  std::future<backup::BackupEnd> joiner_end_;
  std::future<vmm::MachineExit> primary_end_;
};

TEST_F(FullSyncTest, SendsTheBlocksThatDifferAndNoOthers) {
  for (const std::uint64_t block : {1, 2, 50, 63, 64, 80}) {
    primary_disk_.fill_block(block, 3);
    backup_disk_.fill_block(block, 3);
  }
  // Differing: data over other data, over a hole, in the last block; and holes over data.
  backup_disk_.fill_block(50, 4);
  primary_disk_.fill_block(0, 5);
  primary_disk_.fill_block(65, 5);
  primary_disk_.fill_block(kLastBlock, 6);
  backup_disk_.fill_block(63, 7);
  backup_disk_.fill_block(90, 8);
  const std::uint64_t written_before = backup_disk_.image->bytes(DiskCall::kWrite);
  protect();
  EXPECT_EQ(primary_disk_.contents(), backup_disk_.contents());
  // 0, 50, 63, 65 and the last; the hole at 90.
  EXPECT_EQ(backup_disk_.image->bytes(DiskCall::kWrite) - written_before, 4 * kSyncBlockSize + 3 * 512);
  EXPECT_EQ(backup_disk_.image->bytes(DiskCall::kDiscard), kSyncBlockSize);
}

TEST_F(FullSyncTest, OfEqualDisksNothingIsSent) {
  for (const std::uint64_t block : {std::uint64_t{0}, std::uint64_t{70}, kLastBlock}) {
    primary_disk_.fill_block(block, 3);
    backup_disk_.fill_block(block, 3);
  }
  const std::uint64_t written_before = backup_disk_.image->bytes(DiskCall::kWrite);
  protect();
  EXPECT_EQ(backup_disk_.image->bytes(DiskCall::kWrite), written_before);
  EXPECT_EQ(backup_disk_.image->bytes(DiskCall::kDiscard), 0u);
}

TEST_F(FullSyncTest, ADiskOfOtherContentsBecomesEqual) {
  for (std::uint64_t block = 0; block < kBlocks; ++block) {
    if (block % 3 != 0) primary_disk_.fill_block(block, static_cast<unsigned>(block));
    backup_disk_.fill_block(block, 200);
  }
  protect();
  EXPECT_EQ(primary_disk_.contents(), backup_disk_.contents());
}

// From before the full sync on until the end the disk is written and read.
TEST_F(FullSyncTest, ADiskWrittenMeanwhileIsTheSameOnBothHostsInTheEnd) {
  for (std::uint64_t block = 0; block < kBlocks; ++block) backup_disk_.fill_block(block, 200);
  DiskWriter writer(gate_);
  protect();
  let_epochs_go_by();
  const Bytes& written = writer.stop();
  stop();
  EXPECT_EQ(primary_disk_.contents(), written);
  EXPECT_EQ(backup_disk_.contents(), written);
}

// The joiner's sync reads the primary's image while epochs are held, committed and written to it.
TEST_F(FullSyncTest, ADiskWrittenWhileAnotherBackupJoinsIsTheSameOnAllHostsInTheEnd) {
  for (std::uint64_t block = 0; block < kBlocks; ++block) joiner_disk_.fill_block(block, 200);
  DiskWriter writer(gate_);
  protect();
  join();
  let_epochs_go_by();
  const Bytes& written = writer.stop();
  stop();
  EXPECT_EQ(primary_disk_.contents(), written);
  EXPECT_EQ(backup_disk_.contents(), written);
  EXPECT_EQ(joiner_disk_.contents(), written);
}

// The guest stands still for the end of the joiner's sync when the last backup's loss is decided. What is committed by that
// is not on the primary's image, from which the joiner got its disk: only a sync from then on makes a backup of it.
TEST_F(FullSyncTest, ADiskWrittenWhileTheOnlyBackupIsLostAndAnotherJoinsIsTheSameInTheEnd) {
  epoch_length_ = 300ms;  // time for the joiner to come to its end before four epochs wait for the arbiter
  std::promise<protocol::Verdict> verdict;
  std::promise<void> asked;
  claim_ = [&](const protocol::TermClaim& claim) {
    if (claim.term.value == 1) return protocol::Verdict::kWon;
    asked.set_value();
    return verdict.get_future().get();
  };
  protect();
  joiner_disk_.image->hold(DiskCall::kRead);  // its digests
  begin_to_join();
  EXPECT_TRUE(joiner_disk_.image->wait_until_begun(DiskCall::kRead, 1));
  backup_->stop();
  asked.get_future().wait();
  vmm::OutputGate& gate = *gate_;
  const Bytes data(kSyncBlockSize, std::byte{7});
  for (std::uint64_t block = 0; block < 10; ++block) EXPECT_TRUE(gate.write({0}, block * kSyncBlockSize, data));
  EXPECT_TRUE(gate.flush({0}));
  joiner_disk_.image->let_all_go();
  const auto summary = [this] { return primary_->statistics().summary(); };
  const std::uint64_t before = summary().closed.value;
  EXPECT_TRUE(eventually([&] {
    const std::uint64_t closed = summary().closed.value;
    return closed >= before + 2 || closed >= summary().committed.value + primary::kMaxEpochsInFlight;
  }));
  const std::uint64_t undecided = summary().closed.value;
  verdict.set_value(protocol::Verdict::kWon);
  EXPECT_TRUE(eventually([&] { return summary().committed.value >= undecided; }));

  const auto joined = [&] { return summary().backups == 1; };
  EXPECT_TRUE(eventually([&] { return joined() || joiner_end_.wait_for(0s) == std::future_status::ready; }));
  if (!joined()) {
    (void)joiner_end_.get();  // given up: it joins again
    begin_to_join();
    EXPECT_TRUE(eventually(joined));
  }
  stop();
  EXPECT_EQ(primary_disk_.contents(), joiner_disk_.contents());
}

// What it did meanwhile could only be thrown away, if the other side has the term.
TEST_F(FullSyncTest, TheGuestStandsStillWhileTheArbiterCannotBeAsked) {
  cycled_pages_ = 10;
  std::atomic<unsigned> asked = 0;
  std::atomic<bool> answers = false;
  claim_ = [&](const protocol::TermClaim& claim) {
    if (claim.term.value == 1 || answers) return protocol::Verdict::kWon;
    ++asked;
    return protocol::Verdict::kUnreachable;
  };
  protect();
  const PageWriter writer(*memory_);
  backup_->stop();
  const auto writes_while_it_is_asked_twice = [&] {
    const std::uint64_t rounds = writer.rounds();
    EXPECT_TRUE(eventually([&, before = asked.load()] { return asked >= before + 2; }));
    return writer.rounds() != rounds;
  };
  EXPECT_TRUE(eventually([&] { return !writes_while_it_is_asked_twice(); }));
  EXPECT_FALSE(writes_while_it_is_asked_twice());
  const auto status = primary_->status();
  ASSERT_TRUE(status.has_value());
  EXPECT_EQ(status->guest, "waits for the arbiter");
  answers = true;
  EXPECT_TRUE(eventually([&, rounds = writer.rounds()] { return writer.rounds() > rounds; }));
}

// The primary's own disk cannot be read: the sync ends, the backup is told, the guest goes on, and the gate knows the
// sync no more.
TEST_F(FullSyncTest, ADiskThatCannotBeReadCostsTheBackupNotTheGuest) {
  protocol::Listener listener({"127.0.0.1", 0}, *backup_key_, {primary_key_->public_key()});
  const auto shipper = std::make_shared<primary::Shipper>(
      protocol::Link::connect({"127.0.0.1", listener.port()}, *primary_key_, backup_key_->public_key()));
  primary::HoldingGate gate(*primary_disk_.backends, 1 << 20,
                            {.durable = [](protocol::EpochId) {}, .image_failed = [](const std::string&) {}});
  primary::PagePool pool(2 << 20);
  primary::EngineMailbox mailbox;
  primary::Statistics statistics;
  const auto machine = boot(*primary_disk_.backends, input_, gate);
  machine->resume();
  auto sync = std::make_unique<primary::FullSync>(
      *machine, *primary_disk_.backends, gate, pool, mailbox, statistics,
      std::vector<primary::SyncTarget>{{{0}, shipper}}, protocol::EpochId{}, primary::FullSync::Afterwards::kRun, [](protocol::BackupId) {});
  primary_disk_.image->fail(DiskCall::kRead);
  const auto backup = listener.accept(10s);
  ASSERT_NE(backup, nullptr);
  EXPECT_FALSE(sync->run());
  sync.reset();
  EXPECT_FALSE(machine->paused());
  bool told = false;
  while (const auto received = backup->receive(10s)) told |= std::holds_alternative<protocol::Goodbye>(received->message);
  EXPECT_TRUE(told);
  EXPECT_TRUE(gate.write({0}, 0, Bytes(512)));  // a device goes on for a moment
  machine->pause();
}

}  // namespace
}  // namespace pollux::testing
