#include "primary/shipper.h"

#include <gtest/gtest.h>

#include <future>

#include "primary/parcels.h"

namespace pollux::primary {
namespace {

using namespace std::chrono_literals;
using protocol::Message;

// Far longer than anything takes; reached only by a test that fails.
constexpr auto kPatience = 60s;
constexpr std::size_t kLarge = 1 << 20;

class ShipperTest : public ::testing::Test {
 protected:
  // The backup's end of the link takes nothing but what is asked of it with next().
  void connect(std::size_t send_queue_bytes) {
    protocol::LinkOptions primary;
    primary.send_queue_bytes = send_queue_bytes;
    primary.stall_timeout = kPatience;
    protocol::LinkOptions backup;
    backup.receive_queue_bytes = 1;
    listener_ = std::make_unique<protocol::Listener>(protocol::Address{"127.0.0.1", 0}, backup_key_,
                                                     std::vector{primary_key_.public_key()}, backup);
    shipper_ = std::make_unique<Shipper>(protocol::Link::connect(
        {"127.0.0.1", listener_->port()}, primary_key_, backup_key_.public_key(), primary));
    backup_ = listener_->accept(kPatience);
    ASSERT_NE(backup_, nullptr);
  }
  // More than the kernel and the link hold together, so that some stay queued.
  void push_many() {
    for (std::size_t i = 0; i < Shipper::kRoomyParcels + 32; ++i) shipper_->push(large_parcel());
  }
  static Parcel large_parcel() {
    const auto bytes = std::make_shared<const Bytes>(kLarge);
    return {protocol::SyncPages{{{{0}, kLarge / kPageSize, false}}}, {ByteView(*bytes)}, bytes};
  }
  std::optional<Message> next() {
    auto received = backup_->receive(kPatience);
    if (!received) return std::nullopt;
    return std::move(received->message);
  }
  // Of everything that comes until the link ends.
  std::optional<Message> last() {
    std::optional<Message> last;
    while (auto message = next()) last = std::move(message);
    EXPECT_FALSE(backup_->is_up());
    return last;
  }
  // A wait_for_room() that has to wait.
  std::future<bool> wait_for_room() {
    auto waiting = std::async(std::launch::async, [this] { return shipper_->wait_for_room(); });
    EXPECT_EQ(waiting.wait_for(50ms), std::future_status::timeout);
    return waiting;
  }

  protocol::session::SecretKey primary_key_ = protocol::session::SecretKey::generate();
  protocol::session::SecretKey backup_key_ = protocol::session::SecretKey::generate();
  std::unique_ptr<protocol::Listener> listener_;
  std::unique_ptr<Shipper> shipper_;
  std::unique_ptr<protocol::Link> backup_;
};

TEST_F(ShipperTest, SendsInOrderAndGivesTheMemoryBack) {
  connect(kLarge);
  auto owner = std::make_shared<Bytes>(2 * kPageSize);
  (*owner)[kPageSize] = std::byte{7};
  const ByteView bytes(*owner);
  shipper_->push(message_parcel(protocol::EpochOpen{{1}}));
  shipper_->push({protocol::EpochPages{{1}, {{{5}, 2, false}}},
                  {bytes.subspan(kPageSize), bytes.first(kPageSize)},
                  owner});
  shipper_->wait_until_sent(kPatience);
  EXPECT_EQ(owner.use_count(), 1);
  EXPECT_EQ(next(), Message(protocol::EpochOpen{{1}}));
  const auto pages = backup_->receive(kPatience);
  ASSERT_TRUE(pages.has_value());
  EXPECT_EQ(pages->body.size(), 2 * kPageSize);
  EXPECT_EQ(pages->body[0], std::byte{7}) << "the pieces in the order they were given";
}

TEST_F(ShipperTest, RoomComesWithAPeerThatReads) {
  connect(1);
  push_many();
  auto waiting = wait_for_room();
  for (std::size_t i = 0; i < Shipper::kRoomyParcels + 32; ++i) ASSERT_TRUE(next().has_value());
  EXPECT_TRUE(waiting.get());
}

TEST_F(ShipperTest, AbortLetsAWaiterGoAndTheMemoryToo) {
  connect(1);
  push_many();
  auto owner = std::make_shared<Bytes>(kPageSize);
  shipper_->push({protocol::EpochPages{{1}, {{{5}, 1, false}}}, {ByteView(*owner)}, owner});
  auto waiting = wait_for_room();
  shipper_->abort();
  EXPECT_FALSE(waiting.get());
  EXPECT_EQ(owner.use_count(), 1);
  shipper_->push(message_parcel(protocol::EpochOpen{{1}}));  // goes nowhere
  shipper_->wait_until_sent(kPatience);
  EXPECT_FALSE(shipper_->link().is_up());
}

TEST_F(ShipperTest, AClosedPeerLetsAWaiterGo) {
  connect(1);
  push_many();
  auto waiting = wait_for_room();
  backup_->close();
  EXPECT_FALSE(waiting.get());
}

TEST_F(ShipperTest, RetireLetsAWaiterGo) {
  connect(1);
  push_many();
  auto waiting = wait_for_room();
  shipper_->retire();
  EXPECT_FALSE(waiting.get());
}

// A backup that was given up and hears no goodbye would promote itself beside the living primary.
TEST_F(ShipperTest, OfWhatIsQueuedARetiredBackupStillHearsTheGoodbye) {
  connect(64 * kLarge);
  push_many();
  ASSERT_TRUE(shipper_->wait_for_room());  // so much lies in the link, before the peer reads any of it
  push_many();
  const protocol::Goodbye goodbye{protocol::GoodbyeReason::kDropped, "too slow"};
  shipper_->push(message_parcel(goodbye));
  shipper_->retire();
  shipper_->push(message_parcel(protocol::EpochOpen{{1}}));  // too late
  EXPECT_EQ(last(), Message(goodbye));
}

TEST_F(ShipperTest, ClosesOnlyWhenEverythingIsSent) {
  connect(64 * kLarge);
  push_many();
  shipper_->push(message_parcel(protocol::EpochOpen{{1}}));
  shipper_->close_when_sent();
  EXPECT_EQ(last(), Message(protocol::EpochOpen{{1}}));
}

TEST_F(ShipperTest, EndsWithoutSendingWhatIsQueued) {
  connect(1);
  push_many();
  shipper_->push(message_parcel(protocol::EpochOpen{{1}}));
  shipper_.reset();  // does not wait for the peer
  EXPECT_NE(last(), Message(protocol::EpochOpen{{1}}));
}

}  // namespace
}  // namespace pollux::primary
