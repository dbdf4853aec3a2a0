// A backup's whole side of the replication without KVM: the test plays the primary over a real link, against
// a real ReplicationSession with real disk images. What the backup holds in the end is compared byte by byte
// with a model.
#include "backup/replication_session.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <functional>
#include <future>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "base/error.h"
#include "primary/parcels.h"
#include "tests/support/controlled_image.h"
#include "tests/support/temporary_folder.h"

namespace pollux::backup {
namespace {

using namespace std::chrono_literals;
using protocol::DiskOperation;
using protocol::DiskOperationKind;
using protocol::EpochId;
using protocol::Message;
using testing::ControlledImage;
using testing::DiskCall;
using ::testing::HasSubstr;

// Far longer than anything takes; reached only by a test that fails.
constexpr auto kPatience = 60s;
constexpr auto kHeartbeatInterval = 10ms;
// So many turns of the backup's loop are time enough for it to do what it must not do.
constexpr int kManyHeartbeats = 30;

constexpr std::uint64_t kPages = 256;  // one message holds them all
constexpr std::uint64_t kMemoryBytes = kPages * kPageSize;
constexpr std::uint64_t kDiskBytes = 1 << 20;
// The least that a session takes for this machine.
constexpr std::uint64_t kStagingBytes = kMemoryBytes + (std::uint64_t{128} << 20);

Bytes filled(std::size_t bytes, unsigned value) { return Bytes(bytes, static_cast<std::byte>(value)); }

// No two pages or sectors alike.
Bytes pattern(std::size_t bytes, unsigned seed) {
  Bytes pattern(bytes);
  for (std::size_t i = 0; i < bytes; ++i) pattern[i] = static_cast<std::byte>(i * 7 + i / 509 + seed);
  return pattern;
}

vmm::MachineConfig machine_config() {
  vmm::MachineConfig config;
  config.memory_bytes = kMemoryBytes;
  config.disks.push_back({kDiskBytes, false});
  config.nics.emplace_back();
  return config;
}

protocol::Hello hello_of(const vmm::MachineConfig& config) {
  protocol::Hello hello;
  hello.term = {1};
  hello.machine_config = encode(config);
  hello.config_digest = protocol::digest_config(hello.machine_config);
  for (const vmm::DiskConfig& disk : config.disks) hello.disk_bytes.push_back(disk.size);
  return hello;
}

// What the backup must hold at the end of an epoch.
struct Contents {
  Bytes memory = Bytes(kMemoryBytes);
  Bytes disk = Bytes(kDiskBytes);
  Bytes state;
};

// The primary's heartbeats, as long as this lives. They wait behind whatever else is sent.
class Heart {
 public:
  explicit Heart(protocol::Link& link)
      : thread_([this, &link] {
          for (std::uint64_t beat = 1; !stopping_ && link.send(protocol::Heartbeat{beat}); ++beat) {
            std::this_thread::sleep_for(kHeartbeatInterval);
          }
        }) {}
  ~Heart() {
    stopping_ = true;
    thread_.join();
  }

 private:
  std::atomic<bool> stopping_ = false;
  std::thread thread_;
};

class ReplicationSessionTest : public ::testing::Test {
 protected:
  ~ReplicationSessionTest() override {
    image_->let_all_go();
    if (running_.valid()) {
      session_->stop();
      running_.wait();
    }
  }

  void SetUp() override { start({kHeartbeatInterval, kPatience}); }

  // The backup waits for a Hello.
  void start(protocol::Timing timing) {
    listener_ = std::make_unique<protocol::Listener>(protocol::Address{"127.0.0.1", 0}, backup_key_,
                                                     std::vector{primary_key_.public_key()});
    primary_ =
        protocol::Link::connect({"127.0.0.1", listener_->port()}, primary_key_, backup_key_.public_key());
    auto link = listener_->accept(kPatience);
    ASSERT_NE(link, nullptr);
    session_ = make_session(std::move(link), timing);
    running_ = std::async(std::launch::async, [this] { return session_->run(); });
  }
  // The arbiter says yes, and notes what the disk held when it was asked. Without KVM the rehearsal believes every state
  // but one.
  std::unique_ptr<ReplicationSession> make_session(std::unique_ptr<protocol::Link> link, protocol::Timing timing) {
    return std::make_unique<ReplicationSession>(
        std::move(link), *backends_, timing, kStagingBytes,
        [this](const vmm::MachineConfig&, ByteView) {
          if (refuse_state_) throw Error("this host lacks a feature");
        },
        [this](const protocol::TermClaim&) {
          disks_at_claims_.push_back(testing::contents_of(disk_path_));
          return protocol::Verdict::kWon;
        });
  }
  void restart(protocol::Timing timing) {
    session_->stop();
    running_.get();
    session_.reset();
    start(timing);
  }
  SessionOutcome outcome() {
    if (running_.wait_for(kPatience) != std::future_status::ready) {
      ADD_FAILURE() << "the session does not end";
      image_->let_all_go();
      session_->stop();
    }
    return running_.get();
  }

  // The primary's side.

  void send(const Message& message, ByteView body = {}) { EXPECT_TRUE(primary_->send(message, body)); }

  // The backup's next message that is not a heartbeat; nothing when the link ended.
  std::optional<Message> next() {
    while (auto received = primary_->receive(kPatience)) {
      if (std::holds_alternative<protocol::DiskDigests>(received->message))
        digests_ = std::move(received->body);
      if (!std::holds_alternative<protocol::Heartbeat>(received->message)) return received->message;
    }
    EXPECT_FALSE(primary_->is_up()) << "the backup says nothing";
    return std::nullopt;
  }
  // The backup lives for so long and says nothing else.
  void expect_only_heartbeats(int count = kManyHeartbeats) {
    for (int i = 0; i < count; ++i) {
      const auto received = primary_->receive(kPatience);
      ASSERT_TRUE(received.has_value()) << primary_->down_reason();
      ASSERT_TRUE(std::holds_alternative<protocol::Heartbeat>(received->message)) << received->message;
    }
  }
  void expect_ack(std::uint64_t epoch) { EXPECT_EQ(next(), Message(protocol::Ack{{epoch}})); }
  void expect_goodbye(const std::string& text) {
    const auto message = next();
    ASSERT_TRUE(message.has_value());
    const auto* goodbye = std::get_if<protocol::Goodbye>(&*message);
    ASSERT_NE(goodbye, nullptr) << *message;
    EXPECT_EQ(goodbye->reason, protocol::GoodbyeReason::kDropped);
    EXPECT_THAT(goodbye->text, HasSubstr(text));
    EXPECT_EQ(goodbye->text.find('\n'), std::string::npos);
  }

  void greet() {
    send(hello_of(machine_config()));
    const auto message = next();
    ASSERT_TRUE(message && std::holds_alternative<protocol::Welcome>(*message));
  }
  void sync_memory() {
    now_.memory = pattern(kMemoryBytes, 1);
    std::fill_n(now_.memory.begin() + 3 * kPageSize, 2 * kPageSize, std::byte{0});
    Bytes body = now_.memory;
    body.erase(body.begin() + 3 * kPageSize, body.begin() + 5 * kPageSize);
    send(protocol::SyncPages{{{{0}, 3, false}, {{3}, 2, true}, {{5}, kPages - 5, false}}}, body);
  }
  void sync_disk() {
    now_.disk = pattern(kDiskBytes, 2);
    std::fill_n(now_.disk.begin() + 65536, 65536, std::byte{0});
    Bytes body = now_.disk;
    body.erase(body.begin() + 65536, body.begin() + 2 * 65536);
    send(
        protocol::DiskBlocks{{0},
                             {{0, 65536, false}, {65536, 65536, true}, {131072, kDiskBytes - 131072, false}}},
        body);
  }
  void end_sync(std::size_t state_bytes = 1000) {
    now_.state = pattern(state_bytes, 3);
    send_state(protocol::SyncEnd{{0}, kPages - 2, 2, 3});
    history_ = {now_};
  }
  // Up to the acknowledgement of the full sync: protected.
  void protect() {
    greet();
    sync();
  }
  void sync() {
    sync_memory();
    sync_disk();
    end_sync();
    expect_ack(0);
  }

  // An epoch record, piece by piece; what it does to the machine goes into now_.
  void open() {
    tally_ = {EpochId{history_.size()}, 0, 0, 0, false, 0};
    send(protocol::EpochOpen{tally_.epoch});
  }
  void write_page(std::uint64_t gfn, const Bytes& page) {
    std::copy(page.begin(), page.end(), now_.memory.begin() + static_cast<std::ptrdiff_t>(gfn * kPageSize));
    send(protocol::EpochPages{tally_.epoch, {{{gfn}, page.size() / kPageSize, false}}}, page);
    tally_.pages += page.size() / kPageSize;
  }
  void zero_pages(std::uint64_t gfn, std::uint64_t count) {
    std::fill_n(now_.memory.begin() + static_cast<std::ptrdiff_t>(gfn * kPageSize), count * kPageSize,
                std::byte{0});
    send(protocol::EpochPages{tally_.epoch, {{{gfn}, count, true}}});
    tally_.zero_pages += count;
  }
  void write_disk(std::uint64_t offset, const Bytes& data) {
    std::copy(data.begin(), data.end(), now_.disk.begin() + static_cast<std::ptrdiff_t>(offset));
    disk_operation({{0}, DiskOperationKind::kWrite, offset, data.size()}, data);
  }
  void clear_disk(DiskOperationKind kind, std::uint64_t offset, std::uint64_t length) {
    std::fill_n(now_.disk.begin() + static_cast<std::ptrdiff_t>(offset), length, std::byte{0});
    disk_operation({{0}, kind, offset, length});
  }
  void flush_disk() {
    tally_.flushed = true;
    disk_operation({{0}, DiskOperationKind::kFlush, 0, 0});
  }
  void disk_operation(const DiskOperation& operation, const Bytes& data = {}) {
    send(protocol::EpochDiskWrites{tally_.epoch, {operation}}, data);
    ++tally_.disk_operations;
  }
  // As a primary does: a long one in pieces.
  template <class End>
  void send_state(const End& end) {
    for (const primary::Parcel& parcel : primary::state_parcels(end, std::make_shared<const Bytes>(now_.state))) {
      send(parcel.message, Bytes(parcel.body.front().begin(), parcel.body.front().end()));
    }
  }
  void close(std::size_t state_bytes = 2000) {
    now_.state = pattern(state_bytes, static_cast<unsigned>(history_.size()));
    send_state(tally_);
    history_.push_back(now_);
  }
  // A whole small record: a page and a sector, different in each epoch.
  void small_epoch(bool flushed) {
    const auto value = static_cast<unsigned>(history_.size());
    open();
    write_page(value % kPages, filled(kPageSize, value));
    write_disk(512 * (value % 100), filled(512, value));
    if (flushed) flush_disk();
    close();
  }

  // The primary's host dies: nothing of it is heard any more.
  void lose_primary() {
    EXPECT_TRUE(primary_->flush(kPatience));
    primary_->close();
  }

  // It counts the primary as lost, and claims or has claimed.
  void wait_until_claiming() const {
    using State = protocol::BackupReplica::State;
    const auto deadline = std::chrono::steady_clock::now() + kPatience;
    while (session_->status().state != State::kClaiming && session_->status().state != State::kPromoted) {
      ASSERT_LT(std::chrono::steady_clock::now(), deadline) << "the session does not claim";
      std::this_thread::sleep_for(1ms);
    }
  }

  // Once run() has returned.
  void expect_image_is(const Contents& expected) {
    const auto memory = session_->image().take_memory();
    ASSERT_NE(memory, nullptr);
    for (std::uint64_t i = 0; i < kPages; ++i) {
      ASSERT_TRUE(
          std::ranges::equal(memory->page({i}), ByteView(expected.memory).subspan(i * kPageSize, kPageSize)))
          << "page " << i;
    }
    expect_disk_is(expected);
    EXPECT_EQ(session_->image().take_state(), expected.state);
  }
  void expect_disk_is(const Contents& expected) const {
    const Bytes disk = testing::contents_of(disk_path_);
    for (std::uint64_t at = 0; at < kDiskBytes; at += 512) {
      ASSERT_TRUE(std::equal(disk.begin() + static_cast<std::ptrdiff_t>(at),
                             disk.begin() + static_cast<std::ptrdiff_t>(at + 512),
                             expected.disk.begin() + static_cast<std::ptrdiff_t>(at)))
          << "disk offset " << at;
    }
  }
  void expect_promoted_to(std::uint64_t epoch) {
    const SessionOutcome result = outcome();
    ASSERT_TRUE(result.promote) << result.reason;
    EXPECT_FALSE(result.failed);
    ASSERT_EQ(result.epoch, EpochId{epoch});
    expect_image_is(history_.at(epoch));
  }
  void expect_failed(const std::string& reason) {
    const SessionOutcome result = outcome();
    EXPECT_FALSE(result.promote);
    EXPECT_TRUE(result.failed);
    EXPECT_FALSE(result.again);
    EXPECT_THAT(result.reason, HasSubstr(reason));
  }

  testing::TemporaryFolder folder_;
  std::string disk_path_;
  protocol::session::SecretKey primary_key_ = protocol::session::SecretKey::generate();
  protocol::session::SecretKey backup_key_ = protocol::session::SecretKey::generate();
  ControlledImage* image_ = nullptr;  // of backends_
  std::unique_ptr<vmm::Backends> backends_ = make_backends();
  std::unique_ptr<protocol::Listener> listener_;
  std::unique_ptr<protocol::Link> primary_;
  std::atomic<bool> refuse_state_ = false;
  std::vector<Bytes> disks_at_claims_;  // the session's own while it runs
  std::unique_ptr<ReplicationSession> session_;
  std::future<SessionOutcome> running_;
  Bytes digests_;  // the last that came

  Contents now_;                   // the primary's machine
  std::vector<Contents> history_;  // at the end of each epoch
  protocol::EpochClose tally_;     // of the open record

 private:
  std::unique_ptr<vmm::Backends> make_backends() {
    std::vector<std::unique_ptr<vmm::Image>> disks;
    disk_path_ = folder_.make_file("disk.raw", kDiskBytes);
    auto image = std::make_unique<ControlledImage>(disk_path_);
    image_ = image.get();
    disks.push_back(std::move(image));
    std::vector<std::unique_ptr<vmm::Nic>> nics;
    nics.push_back(std::make_unique<vmm::NullNic>());
    return std::make_unique<vmm::Backends>(std::move(disks), std::move(nics),
                                           vmm::open_console("none", [] {}),
                                           vmm::open_console("none", [] {}));
  }
};

// The course of a protection.

TEST_F(ReplicationSessionTest, HoldsTheMachineAsItWasAtTheEndOfTheLastEpoch) {
  protect();
  open();
  write_page(7, pattern(3 * kPageSize, 9));
  zero_pages(0, 2);
  write_disk(0, filled(4096, 1));
  close();
  expect_ack(1);
  open();
  write_page(8, filled(kPageSize, 5));
  clear_disk(DiskOperationKind::kDiscard, 512, 1024);
  write_disk(1024, filled(512, 6));  // after the discard, in the middle of it
  flush_disk();
  clear_disk(DiskOperationKind::kZero, kDiskBytes - 512, 512);
  close();
  expect_ack(2);
  open();  // nothing happened
  close();
  expect_ack(3);
  lose_primary();
  expect_promoted_to(3);
}

TEST_F(ReplicationSessionTest, TellsTheDigestsOfItsDisk) {
  const Bytes own = pattern(65536, 4);
  ASSERT_TRUE(image_->write(65536, own));
  greet();
  send(protocol::DiskDigestRequest{{0}, 0, kDiskBytes / 65536});
  EXPECT_EQ(next(), Message(protocol::DiskDigests({0}, 0, kDiskBytes / 65536)));
  const auto digest_at = [&](std::size_t block) { return ByteView(digests_).subspan(block * 16, 16); };
  EXPECT_TRUE(std::ranges::equal(digest_at(1), protocol::digest_block(own)));
  EXPECT_TRUE(std::ranges::equal(digest_at(2), protocol::digest_block(Bytes(65536))));
}

TEST_F(ReplicationSessionTest, AnEpochWithAFlushIsAcknowledgedOnlyWhenItIsDurable) {
  protect();
  const std::uint64_t syncs = image_->begun(DiskCall::kSync);
  image_->hold(DiskCall::kSync);
  small_epoch(true);
  small_epoch(false);  // its acknowledgement would speak for the first too
  ASSERT_TRUE(image_->wait_until_begun(DiskCall::kSync, syncs + 1));
  expect_only_heartbeats();
  EXPECT_EQ(testing::contents_of(disk_path_)[512], std::byte{1}) << "made durable before it was written";
  image_->let_all_go();
  expect_ack(2);
}

TEST_F(ReplicationSessionTest, AtItsAcknowledgementAFlushedWriteIsInTheImage) {
  protect();
  for (std::uint64_t epoch = 1; epoch <= 50; ++epoch) {
    small_epoch(true);
    expect_ack(epoch);
    expect_disk_is(history_.back());
  }
}

TEST_F(ReplicationSessionTest, AnEpochWithoutAFlushIsAcknowledgedWhileTheDiskIsSlow) {
  protect();
  image_->hold(DiskCall::kWrite);
  for (std::uint64_t epoch = 1; epoch <= 3; ++epoch) {
    small_epoch(false);
    expect_ack(epoch);
  }
  small_epoch(true);
  expect_only_heartbeats();
  image_->let_all_go();
  expect_ack(4);
  expect_disk_is(history_.back());
}

TEST_F(ReplicationSessionTest, PromotionWaitsForTheDisk) {
  protect();
  const std::uint64_t writes = image_->begun(DiskCall::kWrite);
  image_->hold(DiskCall::kWrite);
  small_epoch(false);
  expect_ack(1);
  small_epoch(false);
  expect_ack(2);
  lose_primary();
  ASSERT_TRUE(image_->wait_until_begun(DiskCall::kWrite, writes + 1));
  EXPECT_EQ(running_.wait_for(100ms), std::future_status::timeout);
  image_->let_all_go();
  expect_promoted_to(2);
}

// Losses.

TEST_F(ReplicationSessionTest, OfARecordThatNeverCameWholeNothingIsApplied) {
  const std::vector<std::function<void()>> pieces = {
      [&] { write_page(20, filled(kPageSize, 77)); },
      [&] { zero_pages(30, 4); },
      [&] { write_disk(2048, filled(512, 77)); },
      [&] { clear_disk(DiskOperationKind::kZero, 8192, 512); },
      [&] { flush_disk(); },
  };
  for (std::size_t cut = 0; cut <= pieces.size(); ++cut) {
    if (cut > 0) start({kHeartbeatInterval, kPatience});
    protect();
    small_epoch(false);
    expect_ack(1);
    open();
    for (std::size_t i = 0; i < cut; ++i) pieces[i]();
    lose_primary();
    expect_promoted_to(1);
    session_.reset();
  }
}

// The link ends anywhere, often within a frame: the image is that of one epoch, whichever it is, and no
// acknowledged epoch is missing.
TEST_F(ReplicationSessionTest, CutAnywhereTheImageIsThatOfAWholeEpoch) {
  for (int round = 0; round < 15; ++round) {
    if (round > 0) start({kHeartbeatInterval, kPatience});
    protect();
    for (int epoch = 0; epoch <= round; ++epoch) {
      open();
      for (std::uint64_t page = 0; page < kPages; page += 32) {
        write_page(page, filled(32 * kPageSize, static_cast<unsigned>(100 + epoch)));
      }
      write_disk(0, filled(kDiskBytes, static_cast<unsigned>(epoch)));
      close();
    }
    std::uint64_t acked = 0;
    for (int i = 0; i < round % 4; ++i) {
      const auto message = next();
      ASSERT_TRUE(message && std::holds_alternative<protocol::Ack>(*message));
      acked = std::get<protocol::Ack>(*message).epoch.value;
    }
    primary_->close();
    const SessionOutcome result = outcome();
    ASSERT_TRUE(result.promote) << result.reason;
    EXPECT_GE(result.epoch.value, acked);
    ASSERT_LT(result.epoch.value, history_.size());
    expect_image_is(history_[result.epoch.value]);
    session_.reset();
  }
}

TEST_F(ReplicationSessionTest, LostBeforeAnythingWasTouchedAnotherPrimaryMayCome) {
  lose_primary();
  const SessionOutcome result = outcome();
  EXPECT_FALSE(result.promote);
  EXPECT_TRUE(result.again);
}

TEST_F(ReplicationSessionTest, LostDuringTheFullSyncItEndsAndSaysSo) {
  greet();
  sync_memory();
  sync_disk();
  lose_primary();
  expect_failed("before protection began");
}

TEST_F(ReplicationSessionTest, AHostThatCannotRunTheMachineSaysSoWhileThePrimaryLives) {
  refuse_state_ = true;
  greet();
  sync_memory();
  sync_disk();
  end_sync();
  expect_goodbye("this host lacks a feature");
  expect_failed("this host lacks a feature");
}

// Frames that wait and reads not yet delivered make a state longer than a message.
TEST_F(ReplicationSessionTest, AStateOfManyPiecesArrivesWhole) {
  greet();
  sync_memory();
  sync_disk();
  end_sync(3 * protocol::kMaxBodyBytes + 5);
  expect_ack(0);
  open();
  close(2 * protocol::kMaxBodyBytes);
  expect_ack(1);
  lose_primary();
  expect_promoted_to(1);
}

TEST_F(ReplicationSessionTest, ASilentPrimaryIsLost) {
  restart({kHeartbeatInterval, 1s});
  {
    greet();  // the first that a backup may hear
    const Heart heart(*primary_);
    sync();
    small_epoch(false);
    expect_ack(1);
    expect_only_heartbeats();
  }
  expect_promoted_to(1);
}

TEST_F(ReplicationSessionTest, AGoodbyeEndsAndNeverPromotes) {
  protect();
  small_epoch(true);
  expect_ack(1);
  open();
  write_disk(0, filled(512, 99));
  send(protocol::Goodbye{protocol::GoodbyeReason::kPoweredOff, {}});
  const SessionOutcome result = outcome();
  EXPECT_FALSE(result.promote);
  EXPECT_FALSE(result.failed);
  EXPECT_THAT(result.reason, HasSubstr("powered off"));
  expect_disk_is(history_[1]);
}

// Machines that do not fit.

struct Misfit {
  const char* name;
  std::function<void(protocol::Hello&)> change;
  const char* reason;
};

void PrintTo(const Misfit& misfit, std::ostream* out) { *out << misfit.name; }

void set_config(protocol::Hello& hello, const std::function<void(vmm::MachineConfig&)>& change) {
  vmm::MachineConfig config = machine_config();
  change(config);
  hello = hello_of(config);
}

class MisfitTest : public ReplicationSessionTest, public ::testing::WithParamInterface<Misfit> {};

TEST_P(MisfitTest, IsRefusedWithTheReasonAndNothingIsTouched) {
  const Bytes before = testing::contents_of(disk_path_);
  protocol::Hello hello = hello_of(machine_config());
  GetParam().change(hello);
  send(hello);
  const auto message = next();
  ASSERT_TRUE(message && std::holds_alternative<protocol::Refuse>(*message));
  EXPECT_THAT(std::get<protocol::Refuse>(*message).reason, HasSubstr(GetParam().reason));
  const SessionOutcome result = outcome();
  EXPECT_FALSE(result.promote);
  EXPECT_TRUE(result.again) << "another primary may come";
  EXPECT_THAT(result.reason, HasSubstr(GetParam().reason));
  EXPECT_EQ(testing::contents_of(disk_path_), before);
}

INSTANTIATE_TEST_SUITE_P(
    ReplicationSession, MisfitTest,
    ::testing::Values(
        Misfit{"DiskSize",
               [](auto& hello) { set_config(hello, [](auto& config) { config.disks[0].size += 512; }); },
               "disk 0 has 1049088 bytes on the primary"},
        Misfit{"OneDiskMore",
               [](auto& hello) {
                 set_config(hello, [](auto& config) { config.disks.push_back({512, false}); });
               },
               "2 disk(s), this backup was given 1"},
        Misfit{"NoDisk", [](auto& hello) { set_config(hello, [](auto& config) { config.disks.clear(); }); },
               "0 disk(s), this backup was given 1"},
        Misfit{"NoNic", [](auto& hello) { set_config(hello, [](auto& config) { config.nics.clear(); }); },
               "0 NIC(s), this backup was given 1"},
        Misfit{"MoreMemoryThanStaging",
               [](auto& hello) { set_config(hello, [](auto& config) { config.memory_bytes *= 2; }); },
               "--staging"},
        Misfit{"DisksOfAnotherMachine", [](auto& hello) { hello.disk_bytes = {kDiskBytes + 512}; },
               "the hello's disks are not those of its machine"},
        Misfit{"Garbage",
               [](auto& hello) {
                 hello.machine_config = pattern(200, 1);
                 hello.config_digest = protocol::digest_config(hello.machine_config);
               },
               "machine config"},
        Misfit{"Version", [](auto& hello) { hello.version = 99; }, "version"}),
    [](const auto& info) { return info.param.name; });

// Primaries that break the rules. Each begins with a good write, of which nothing may be seen.

TEST_F(ReplicationSessionTest, ABadRecordEndsTheSessionAndLeavesTheImageAsItWas) {
  struct BadPiece {
    const char* name;
    std::function<void()> send;
    const char* reason;
  };
  const auto lie = [this](auto change) {
    return [this, change] {
      protocol::EpochClose close = tally_;
      change(close);
      send(close, Bytes(close.state_bytes));
    };
  };
  const Bytes page = filled(kPageSize, 66);
  const Bytes sector = filled(512, 66);
  const auto second = [](const DiskOperation& operation) {
    return protocol::EpochDiskWrites{{2}, {operation}};
  };
  const std::vector<BadPiece> pieces = {
      {"a page beyond memory",
       [&] {
         send(protocol::EpochPages{{2}, {{{kPages}, 1, false}}}, page);
       },
       "not RAM"},
      {"a run that ends beyond",
       [&] {
         send(protocol::EpochPages{{2}, {{{kPages - 1}, 2, true}}});
       },
       "not RAM"},
      {"a run far away",
       [&] {
         send(protocol::EpochPages{{2}, {{{protocol::kPageNumberLimit - 1}, 1, true}}});
       },
       "not RAM"},
      {"good and bad runs in one message",
       [&] {
         send(protocol::EpochPages{{2}, {{{0}, 1, false}, {{kPages + 9}, 1, true}}}, page);
       },
       "not RAM"},
      {"a write at the end of the disk",
       [&] {
         send(second({{0}, DiskOperationKind::kWrite, kDiskBytes, 512}), sector);
       },
       "beyond the disk"},
      {"a write over the end",
       [&] {
         send(second({{0}, DiskOperationKind::kWrite, kDiskBytes - 512, 1024}), filled(1024, 66));
       },
       "beyond the disk"},
      {"a discard far away",
       [&] {
         send(second({{0}, DiskOperationKind::kDiscard, protocol::kMaxDiskBytes - 512, 512}));
       },
       "beyond the disk"},
      {"another disk",
       [&] {
         send(second({{1}, DiskOperationKind::kWrite, 0, 512}), sector);
       },
       "no disk 1"},
      {"a page too many in the close", lie([](auto& close) { ++close.pages; }), "lacks pages or disk writes"},
      {"a page too few", lie([](auto& close) { --close.pages; }), "lacks pages or disk writes"},
      {"zero pages that were none", lie([](auto& close) { close.zero_pages = 1; }),
       "lacks pages or disk writes"},
      {"a disk operation too many", lie([](auto& close) { ++close.disk_operations; }),
       "lacks pages or disk writes"},
      {"the close of another epoch", lie([](auto& close) { close.epoch = {3}; }), "outside its record"},
      {"an open within the record", [&] { send(protocol::EpochOpen{{3}}); }, "within epoch 2"},
      {"pages of another epoch",
       [&] {
         send(protocol::EpochPages{{3}, {{{0}, 1, false}}}, page);
       },
       "outside its record"},
      {"a sync that is over",
       [&] {
         send(protocol::SyncPages{{{{0}, 1, false}}}, page);
       },
       "out of place"},
      {"a backup's message", [&] { send(protocol::Ack{{1}}); }, "a primary sent Ack"},
  };
  bool first = true;
  for (const BadPiece& piece : pieces) {
    SCOPED_TRACE(piece.name);
    if (!std::exchange(first, false)) start({kHeartbeatInterval, kPatience});
    protect();
    small_epoch(true);  // acknowledged: applied
    expect_ack(1);
    open();
    write_page(40, filled(kPageSize, 55));
    write_disk(65536, filled(512, 55));
    piece.send();
    expect_goodbye(piece.reason);
    expect_failed(piece.reason);
    expect_image_is(history_[1]);
    session_.reset();
  }
}

TEST_F(ReplicationSessionTest, ARecordLargerThanTheStagingMemoryEndsTheSession) {
  protect();
  small_epoch(true);
  expect_ack(1);
  open();
  const Bytes all = filled(kMemoryBytes, 55);
  // The last of these is too much; with the backup gone, nothing more can be sent.
  for (std::uint64_t sent = 0; sent <= kStagingBytes; sent += all.size()) {
    if (!primary_->send(protocol::EpochPages{{2}, {{{0}, kPages, false}}}, all)) break;
  }
  expect_goodbye("longer than");
  expect_failed("longer than");
  expect_image_is(history_[1]);
}

TEST_F(ReplicationSessionTest, ABadFullSyncEndsTheSession) {
  struct BadPiece {
    const char* name;
    std::function<void()> send;
    const char* reason;
  };
  const Bytes page = filled(kPageSize, 66);
  const auto blocks = [](std::uint64_t offset) { return protocol::DiskBlocks{{0}, {{offset, 512, false}}}; };
  const auto end = [this](std::uint64_t pages, std::uint64_t zero_pages, std::uint64_t extents) {
    return [this, pages, zero_pages, extents] {
      send(protocol::SyncEnd{{0}, pages, zero_pages, extents, 0});
    };
  };
  const std::vector<BadPiece> pieces = {
      {"a page beyond memory",
       [&] {
         send(protocol::SyncPages{{{{kPages}, 1, false}}}, page);
       },
       "not RAM"},
      {"a zero run beyond memory",
       [&] {
         send(protocol::SyncPages{{{{0}, kPages + 1, true}}});
       },
       "not RAM"},
      {"blocks beyond the disk", [&] { send(blocks(kDiskBytes), filled(512, 66)); }, "beyond the disk"},
      {"blocks of another disk",
       [&] {
         send(protocol::DiskBlocks{{1}, {{0, 512, true}}});
       },
       "no disk 1"},
      {"digests beyond the disk",
       [&] {
         send(protocol::DiskDigestRequest{{0}, 15, 2});
       },
       "beyond the disk"},
      {"digests of another disk",
       [&] {
         send(protocol::DiskDigestRequest{{1}, 0, 1});
       },
       "no disk 1"},
      {"a page that never came", end(kPages - 1, 2, 3), "lacks pages or disk blocks"},
      {"a zero page that never came", end(kPages - 2, 3, 3), "lacks pages or disk blocks"},
      {"a block that never came", end(kPages - 2, 2, 4), "lacks pages or disk blocks"},
      {"an epoch before the end", [&] { send(protocol::EpochOpen{{1}}); }, "before the full sync"},
      {"a second hello", [&] { send(hello_of(machine_config())); }, "Hello out of place"},
  };
  bool first = true;
  for (const BadPiece& piece : pieces) {
    SCOPED_TRACE(piece.name);
    if (!std::exchange(first, false)) start({kHeartbeatInterval, kPatience});
    greet();
    sync_memory();
    sync_disk();
    piece.send();
    expect_goodbye(piece.reason);
    expect_failed(piece.reason);
    expect_disk_is(now_);
    session_.reset();
  }
}

// Slow and broken disks.

// Eight records of 16 MiB fill the staging memory; the ninth stays outside until the disk moves on, but for
// what fits into the queues of the link. Meanwhile the primary is not heard, and that is no silence of its
// own.
TEST_F(ReplicationSessionTest, WithFullStagingMemoryItStopsReceivingAndThenGoesOn) {
  constexpr std::uint64_t kFitting = kStagingBytes / (16 * kDiskBytes);
  constexpr std::uint64_t kQueuedWrites = 16 + 48;  // the two links' queues; the kernel's, whose buffers grow at will
  constexpr auto kSilenceTimeout = 2s;
  restart({kHeartbeatInterval, kSilenceTimeout});
  greet();  // the first that a backup may hear
  const Heart heart(*primary_);
  sync();
  image_->hold(DiskCall::kWrite);
  std::atomic<std::uint64_t> writes_sent = 0;
  const auto large_epoch = [&](std::uint64_t writes) {
    open();
    for (writes_sent = 0; writes_sent < writes; ++writes_sent) {
      write_disk(0, filled(kDiskBytes, static_cast<unsigned>(history_.size())));
    }
    close();
  };
  for (std::uint64_t epoch = 1; epoch <= kFitting; ++epoch) {
    large_epoch(16);
    expect_ack(epoch);
  }
  auto sending = std::async(std::launch::async, [&] { large_epoch(kQueuedWrites + 40); });
  expect_only_heartbeats(2 * kSilenceTimeout / kHeartbeatInterval);
  EXPECT_LE(writes_sent, kQueuedWrites);
  image_->let_all_go();
  sending.get();
  expect_ack(kFitting + 1);
  lose_primary();
  expect_promoted_to(kFitting + 1);
}

TEST_F(ReplicationSessionTest, ADiskThatRefusesAWriteEndsTheBackup) {
  protect();
  image_->fail(DiskCall::kWrite);
  small_epoch(false);
  expect_ack(1);  // whole, and so acknowledged: the backup still had it then
  expect_goodbye("cannot write " + disk_path_);
  expect_failed("cannot write " + disk_path_);
}

TEST_F(ReplicationSessionTest, ADiskThatCannotBeMadeDurableEndsTheBackup) {
  protect();
  image_->fail(DiskCall::kSync);
  small_epoch(true);
  expect_goodbye("cannot make " + disk_path_ + " durable");
  expect_failed("cannot make " + disk_path_ + " durable");
}

TEST_F(ReplicationSessionTest, ADiskThatRefusesAWriteOfTheFullSyncEndsTheBackup) {
  greet();
  image_->fail(DiskCall::kWrite);
  sync_disk();
  expect_goodbye("cannot write " + disk_path_);
  expect_failed("cannot write " + disk_path_);
}

TEST_F(ReplicationSessionTest, ADiskThatCannotBeReadForItsDigestsEndsTheBackup) {
  greet();
  image_->fail(DiskCall::kRead);
  send(protocol::DiskDigestRequest{{0}, 0, 1});
  expect_goodbye("cannot read " + disk_path_);
  expect_failed("cannot read " + disk_path_);
}

// A term that is won by a backup which then cannot lead is spent: nobody leads, and the others are fenced.
TEST_F(ReplicationSessionTest, ABackupWhoseDiskFailsClaimsNoTerm) {
  protect();
  const std::uint64_t writes = image_->begun(DiskCall::kWrite);
  image_->hold(DiskCall::kWrite);
  small_epoch(false);
  expect_ack(1);
  ASSERT_TRUE(image_->wait_until_begun(DiskCall::kWrite, writes + 1));
  lose_primary();
  wait_until_claiming();
  image_->fail(DiskCall::kWrite);
  image_->let_all_go();
  expect_failed("cannot write " + disk_path_);
  EXPECT_TRUE(disks_at_claims_.empty());
}

TEST_F(ReplicationSessionTest, ABackupThatCannotMakeAFlushDurableClaimsNoTerm) {
  protect();
  const std::uint64_t syncs = image_->begun(DiskCall::kSync);
  image_->hold(DiskCall::kSync);
  small_epoch(true);
  ASSERT_TRUE(image_->wait_until_begun(DiskCall::kSync, syncs + 1));
  lose_primary();
  wait_until_claiming();
  image_->fail(DiskCall::kSync);
  image_->let_all_go();
  expect_failed("cannot make " + disk_path_ + " durable");
  EXPECT_TRUE(disks_at_claims_.empty());
}

TEST_F(ReplicationSessionTest, EveryWholeRecordIsAppliedWhenTheTermIsClaimed) {
  protect();
  const std::uint64_t writes = image_->begun(DiskCall::kWrite);
  image_->hold(DiskCall::kWrite);
  small_epoch(false);
  expect_ack(1);
  small_epoch(false);
  expect_ack(2);
  ASSERT_TRUE(image_->wait_until_begun(DiskCall::kWrite, writes + 1));
  lose_primary();
  wait_until_claiming();
  image_->let_all_go();
  expect_promoted_to(2);
  ASSERT_EQ(disks_at_claims_.size(), 1u);
  EXPECT_EQ(disks_at_claims_.front(), history_[2].disk);
}

// The full sync writes the disk on the receiving thread: a slow one must not make the backup mute, or it is
// dropped.
TEST_F(ReplicationSessionTest, HeartbeatsGoOutBetweenTheWritesOfASlowDisk) {
  greet();
  constexpr std::uint64_t kMessages = 10;
  image_->hold(DiskCall::kWrite);
  for (std::uint64_t i = 0; i < kMessages; ++i) {
    send(protocol::DiskBlocks{{0}, {{i * 512, 512, false}}}, filled(512, 1));
  }
  for (std::uint64_t i = 1; i <= kMessages; ++i) {
    ASSERT_TRUE(image_->wait_until_begun(DiskCall::kWrite, i));
    std::this_thread::sleep_for(2 * kHeartbeatInterval);  // the slow write
    while (primary_->receive(0s)) {                       // what was sent before it
    }
    image_->let_one_go(DiskCall::kWrite);
    if (i == kMessages) break;
    ASSERT_TRUE(image_->wait_until_begun(DiskCall::kWrite, i + 1));
    const auto received = primary_->receive(500ms);
    ASSERT_TRUE(received.has_value()) << "mute from write " << i << " to the next";
    EXPECT_TRUE(std::holds_alternative<protocol::Heartbeat>(received->message));
  }
}

// A disk that hangs for longer than the timeout during full sync is a stall of the backup's, no silence.
TEST_F(ReplicationSessionTest, ADiskThatHangsDuringFullSyncIsNoSilence) {
  constexpr auto kSilenceTimeout = 2s;
  restart({kHeartbeatInterval, kSilenceTimeout});
  greet();
  sync_memory();
  image_->hold(DiskCall::kWrite);
  sync_disk();
  ASSERT_TRUE(image_->wait_until_begun(DiskCall::kWrite, 1));
  std::this_thread::sleep_for(kSilenceTimeout * 3 / 2);  // the hanging disk
  while (primary_->receive(0s)) {  // the heartbeats from before
  }
  image_->let_all_go();
  expect_only_heartbeats(1);
  end_sync();
  expect_ack(0);
}

// An orderly end, whatever it is doing.

class StopTest : public ReplicationSessionTest {
 protected:
  void expect_stopped() {
    session_->stop();
    const SessionOutcome result = outcome();
    EXPECT_FALSE(result.promote);
    EXPECT_FALSE(result.failed);
    EXPECT_FALSE(result.again);
    EXPECT_THAT(result.reason, ::testing::StartsWith("stopped"));
    while (const auto message = next()) {
      if (const auto* goodbye = std::get_if<protocol::Goodbye>(&*message)) {
        EXPECT_EQ(goodbye->reason, protocol::GoodbyeReason::kStopped);
        return;
      }
    }
    ADD_FAILURE() << "the primary heard no goodbye: " << primary_->down_reason();
  }
};

TEST_F(StopTest, BeforeTheHello) { expect_stopped(); }

TEST_F(StopTest, DuringTheFullSync) {
  greet();
  sync_memory();
  expect_stopped();
}

TEST_F(StopTest, WhileProtecting) {
  protect();
  small_epoch(true);
  expect_ack(1);
  expect_stopped();
}

TEST_F(StopTest, WithinARecord) {
  protect();
  open();
  write_disk(0, filled(512, 1));
  expect_stopped();
}

TEST_F(StopTest, WhileTheDiskIsSlow) {
  protect();
  image_->hold(DiskCall::kWrite);
  small_epoch(false);
  expect_ack(1);
  small_epoch(true);
  expect_stopped();
}

TEST_F(StopTest, BeforeItRuns) {
  session_->stop();
  running_.get();
  session_.reset();
  primary_ =
      protocol::Link::connect({"127.0.0.1", listener_->port()}, primary_key_, backup_key_.public_key());
  auto link = listener_->accept(kPatience);
  ASSERT_NE(link, nullptr);
  session_ = make_session(std::move(link), protocol::Timing{kHeartbeatInterval, kPatience});
  session_->stop();
  running_ = std::async(std::launch::async, [this] { return session_->run(); });
  expect_stopped();
}

}  // namespace
}  // namespace pollux::backup
