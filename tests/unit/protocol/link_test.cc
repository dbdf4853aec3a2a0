#include "protocol/link/link.h"

#include <arpa/inet.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstring>
#include <functional>
#include <future>
#include <mutex>
#include <random>
#include <thread>
#include <utility>

#include "base/fd.h"
#include "protocol/session/sealed_frame.h"
#include "tests/support/eventually.h"

namespace pollux::protocol {
namespace {

using namespace std::chrono_literals;
using session::SecretKey;
using ::testing::HasSubstr;

// Far longer than anything takes; reached only by a test that fails.
constexpr auto kPatience = 60s;

TEST(Address, Parses) {
  EXPECT_EQ(parse_address("backup.example:7000").host, "backup.example");
  EXPECT_EQ(parse_address("10.0.0.1:65535").port, 65535);
  EXPECT_EQ(parse_address("[fe80::1]:1").host, "fe80::1");
  EXPECT_EQ(to_string(parse_address("[::1]:80")), "[::1]:80");
  EXPECT_EQ(to_string(parse_address("h:80")), "h:80");
  for (const char* text :
       {"", "host", ":1", "[::1]", "[::1:80", "::1:80", "h:", "h:x", "h:70000", "h:-1", "h:1x"}) {
    EXPECT_THROW(static_cast<void>(parse_address(text)), UsageError) << text;
  }
}

// A TCP connection that is no Link.
class RawClient {
 public:
  explicit RawClient(std::uint16_t port) : fd_(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)) {
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(port);
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    EXPECT_EQ(::connect(fd_.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address), 0);
  }
  void send(const Bytes& bytes) const {
    EXPECT_EQ(::send(fd_.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL),
              static_cast<ssize_t>(bytes.size()));
  }
  // Blocks until the other end closes.
  void wait_for_close() const {
    std::byte buffer[256];
    while (::recv(fd_.get(), buffer, sizeof buffer, 0) > 0) {
    }
  }

 private:
  Fd fd_;
};

class LinkTest : public ::testing::Test {
 protected:
  void listen(LinkOptions options = {}) {
    listener_ = std::make_unique<Listener>(Address{"127.0.0.1", 0}, backup_,
                                           std::vector{primary_.public_key()}, options);
  }
  [[nodiscard]] Address address() const { return {"127.0.0.1", listener_->port()}; }
  [[nodiscard]] std::unique_ptr<Link> connect(const LinkOptions& options = {}) const {
    return Link::connect(address(), primary_, backup_.public_key(), options);
  }
  // Both ends of a new connection.
  void join(const LinkOptions& primary = {}, const LinkOptions& backup = {}) {
    listen(backup);
    to_backup_ = connect(primary);
    to_primary_ = listener_->accept(kPatience);
    ASSERT_NE(to_primary_, nullptr);
  }

  static Bytes pattern(std::size_t bytes, unsigned seed) {
    Bytes pattern(bytes);
    for (std::size_t i = 0; i < bytes; ++i) pattern[i] = static_cast<std::byte>(i * 7 + i / 4096 + seed);
    return pattern;
  }
  static SyncPages pages(std::uint64_t count) { return {{{{0}, count, false}}}; }

  SecretKey primary_ = SecretKey::generate();
  SecretKey backup_ = SecretKey::generate();
  std::unique_ptr<Listener> listener_;
  std::unique_ptr<Link> to_backup_;
  std::unique_ptr<Link> to_primary_;
};

TEST_F(LinkTest, MessagesGoBothWays) {
  join();
  EXPECT_EQ(to_backup_->peer(), backup_.public_key());
  EXPECT_EQ(to_primary_->peer(), primary_.public_key());
  EXPECT_EQ(to_backup_->peer_address(), to_string(address()));
  EXPECT_TRUE(to_backup_->send(EpochOpen{{1}}));
  const auto open = to_primary_->receive(kPatience);
  ASSERT_TRUE(open);
  EXPECT_EQ(open->message, Message(EpochOpen{{1}}));
  EXPECT_TRUE(to_primary_->send(Ack{{1}}));
  const auto ack = to_backup_->receive(kPatience);
  ASSERT_TRUE(ack);
  EXPECT_EQ(ack->message, Message(Ack{{1}}));
  EXPECT_TRUE(to_backup_->is_up());
  EXPECT_EQ(to_backup_->receive(0s), std::nullopt);
}

TEST_F(LinkTest, BothCiphersWork) {
  LinkOptions chacha;
  chacha.ciphers = {false};
  join(chacha);
  EXPECT_EQ(to_backup_->cipher(), session::Cipher::kChaCha20Poly1305);
  const Bytes page = pattern(kPageSize, 1);
  to_backup_->send(pages(1), page);
  EXPECT_EQ(to_primary_->receive(kPatience)->body, page);
  if (!session::available_ciphers().aes256_gcm) return;
  join();
  EXPECT_EQ(to_backup_->cipher(), session::Cipher::kAes256Gcm);
}

TEST_F(LinkTest, ScatteredPagesArriveInOnePiece) {
  join();
  const Bytes memory = pattern(16 * kPageSize, 3);
  std::vector<ByteView> scattered;
  Bytes expected;
  for (const std::size_t page : {9U, 2U, 3U, 15U}) {
    scattered.push_back(ByteView(memory).subspan(page * kPageSize, kPageSize));
    expected.insert(expected.end(), scattered.back().begin(), scattered.back().end());
  }
  EXPECT_TRUE(to_backup_->send(pages(4), scattered));
  EXPECT_EQ(to_primary_->receive(kPatience)->body, expected);
}

TEST_F(LinkTest, ABigTransferArrivesWholeAndInOrder) {
  join();
  constexpr unsigned kMessages = 100;
  const Bytes memory = pattern(kMaxBodyBytes + kMessages, 0);
  auto sender = std::async(std::launch::async, [&] {
    for (unsigned i = 0; i < kMessages; ++i) {
      if (!to_backup_->send(pages(256), ByteView(memory).subspan(i, kMaxBodyBytes))) return false;
    }
    return to_backup_->send(Heartbeat{7});
  });
  for (unsigned i = 0; i < kMessages; ++i) {
    const auto received = to_primary_->receive(kPatience);
    ASSERT_TRUE(received);
    ASSERT_EQ(received->body.size(), kMaxBodyBytes);
    ASSERT_EQ(std::memcmp(received->body.data(), memory.data() + i, kMaxBodyBytes), 0) << i;
  }
  EXPECT_EQ(to_primary_->receive(kPatience)->message, Message(Heartbeat{7}));
  EXPECT_TRUE(sender.get());
}

TEST_F(LinkTest, ASlowReceiverStopsTheSender) {
  LinkOptions small;
  small.send_queue_bytes = 2 << 20;
  small.receive_queue_bytes = 2 << 20;
  join(small, small);
  constexpr unsigned kMessages = 64;
  std::atomic<unsigned> sent = 0;
  auto sender = std::async(std::launch::async, [&] {
    const Bytes body(kMaxBodyBytes);
    for (unsigned i = 0; i < kMessages && to_backup_->send(pages(256), body); ++i) ++sent;
  });
  // Nobody receives: what fits are the two queues and the sockets' buffers (at most 6 + 4 MiB by Linux'
  // defaults).
  EXPECT_EQ(sender.wait_for(500ms), std::future_status::timeout);
  EXPECT_LT(sent, 40u);
  for (unsigned i = 0; i < kMessages; ++i) ASSERT_TRUE(to_primary_->receive(kPatience));
  sender.get();
  EXPECT_EQ(sent, kMessages);
}

TEST_F(LinkTest, APeerThatTakesNothingAndIsSilentIsGivenUp) {
  LinkOptions small;
  small.send_queue_bytes = 1 << 20;
  small.receive_queue_bytes = 1 << 20;
  small.stall_timeout = 200ms;
  join(small, small);
  const Bytes body(kMaxBodyBytes);
  while (to_backup_->send(pages(256), body)) {
  }
  EXPECT_EQ(to_backup_->down_reason(), "the peer takes no data and is silent for 200 ms");
}

TEST_F(LinkTest, CloseFreesABlockedSender) {
  LinkOptions small;
  small.send_queue_bytes = 1 << 20;
  small.receive_queue_bytes = 1 << 20;
  join(small, small);
  auto sender = std::async(std::launch::async, [&] {
    const Bytes body(kMaxBodyBytes);
    while (to_backup_->send(pages(256), body)) {
    }
  });
  EXPECT_EQ(sender.wait_for(200ms), std::future_status::timeout);
  to_backup_->close();
  sender.get();
  EXPECT_FALSE(to_backup_->is_up());
  EXPECT_EQ(to_backup_->down_reason(), "closed");
}

TEST_F(LinkTest, WhatWasSentBeforeACloseIsReceived) {
  join();
  for (std::uint64_t i = 1; i <= 100; ++i) to_backup_->send(Heartbeat{i});
  EXPECT_TRUE(to_backup_->flush(kPatience));
  to_backup_.reset();
  for (std::uint64_t i = 1; i <= 100; ++i) {
    const auto received = to_primary_->receive(kPatience);
    ASSERT_TRUE(received);
    EXPECT_EQ(received->message, Message(Heartbeat{i}));
  }
  EXPECT_FALSE(to_primary_->receive(kPatience));
  EXPECT_FALSE(to_primary_->is_up());
  EXPECT_EQ(to_primary_->down_reason(), "the peer closed the connection");
  EXPECT_FALSE(to_primary_->send(Ack{{1}}));
}

TEST_F(LinkTest, TheCallbackTellsOfMessagesAndOfTheEnd) {
  join();
  std::mutex mutex;
  std::condition_variable changed;
  unsigned calls = 0;
  to_primary_->set_activity_callback([&] {
    const std::lock_guard lock(mutex);
    ++calls;
    changed.notify_all();
  });
  const auto wait_for_call = [&](unsigned number) {
    std::unique_lock lock(mutex);
    return changed.wait_for(lock, kPatience, [&] { return calls >= number; });
  };
  to_backup_->send(Heartbeat{1});
  EXPECT_TRUE(wait_for_call(1));
  EXPECT_TRUE(to_primary_->receive(0s));
  to_backup_->close();
  EXPECT_TRUE(wait_for_call(2));
  EXPECT_FALSE(to_primary_->is_up());
  to_primary_->set_activity_callback(nullptr);
}

TEST_F(LinkTest, MessagesThatComeTogetherAreToldOfOnce) {
  join();
  std::atomic<unsigned> calls = 0;
  to_primary_->set_activity_callback([&] { ++calls; });
  to_backup_->send(EpochOpen{{1}}, ByteView(), More::kYes);
  to_backup_->send(Heartbeat{1}, ByteView(), More::kYes);
  to_backup_->send(Heartbeat{2});
  EXPECT_TRUE(testing::eventually([&] { return calls > 0; }));
  for (const Message& expected : {Message(EpochOpen{{1}}), Message(Heartbeat{1}), Message(Heartbeat{2})}) {
    const auto received = to_primary_->receive(0s);
    ASSERT_TRUE(received);
    EXPECT_EQ(received->message, expected);
  }
  to_backup_->send(Heartbeat{3});
  EXPECT_TRUE(testing::eventually([&] { return calls > 1; }));
  EXPECT_EQ(calls, 2u);
  to_primary_->set_activity_callback(nullptr);
}

// The last of many is followed by nothing.
TEST_F(LinkTest, ManyThatAreSaidToBeFollowedArrive) {
  join();
  constexpr std::uint64_t kCount = 10'000;
  auto sender = std::async(std::launch::async, [&] {
    for (std::uint64_t i = 1; i <= kCount; ++i) to_backup_->send(Heartbeat{i}, ByteView(), More::kYes);
    return to_backup_->flush(kPatience);
  });
  for (std::uint64_t i = 1; i <= kCount; ++i) {
    const auto received = to_primary_->receive(kPatience);
    ASSERT_TRUE(received);
    EXPECT_EQ(received->message, Message(Heartbeat{i}));
  }
  EXPECT_TRUE(sender.get());
}

TEST_F(LinkTest, WhatWaitsForMoreMakesRoomForIt) {
  LinkOptions small;
  small.send_queue_bytes = 1;
  join(small);
  EXPECT_TRUE(to_backup_->send(Heartbeat{1}, ByteView(), More::kYes));
  EXPECT_TRUE(to_backup_->send(Heartbeat{2}));
  EXPECT_TRUE(to_primary_->receive(kPatience));
  EXPECT_TRUE(to_primary_->receive(kPatience));
}

// Shorter and longer than what is written at once and read ahead, by themselves and together.
TEST_F(LinkTest, BodiesOfAnyLengthArriveInAnyCompany) {
  join();
  constexpr unsigned kCount = 500;
  std::minstd_rand random(1);
  std::vector<std::uint32_t> lengths(kCount);
  for (auto& length : lengths) length = static_cast<std::uint32_t>(1 + random() % (1UL << (random() % 17)));
  const Bytes content = pattern(std::size_t{2} << 16, 0);
  const auto body = [&](unsigned i) { return ByteView(content).subspan(i, lengths[i]); };
  auto sender = std::async(std::launch::async, [&] {
    for (unsigned i = 0; i < kCount; ++i) {
      to_backup_->send(EpochInputs{{i}, lengths[i]}, body(i), random() % 2 == 0 ? More::kYes : More::kNo);
    }
    return to_backup_->flush(kPatience);
  });
  for (unsigned i = 0; i < kCount; ++i) {
    const auto received = to_primary_->receive(kPatience);
    ASSERT_TRUE(received);
    EXPECT_EQ(received->message, Message(EpochInputs{{i}, lengths[i]}));
    EXPECT_TRUE(std::ranges::equal(received->body, body(i))) << i;
  }
  EXPECT_TRUE(sender.get());
}

TEST_F(LinkTest, ACallbackSetLateIsCalledAtOnce) {
  join();
  to_backup_->close();
  EXPECT_FALSE(to_primary_->receive(kPatience));
  bool called = false;
  to_primary_->set_activity_callback([&] { called = true; });
  EXPECT_TRUE(called);
  to_primary_->set_activity_callback(nullptr);
}

TEST_F(LinkTest, LastReceivedMovesWithEveryMessage) {
  join();
  const TimePoint before = to_primary_->last_received();
  to_backup_->send(Heartbeat{1});
  ASSERT_TRUE(to_primary_->receive(kPatience));
  EXPECT_GT(to_primary_->last_received(), before);
}

TEST_F(LinkTest, SeveralThreadsMaySend) {
  join();
  std::vector<std::thread> threads;
  for (std::uint64_t t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      for (std::uint64_t i = 0; i < 200; ++i) to_backup_->send(Heartbeat{t * 1000 + i});
    });
  }
  std::vector<std::uint64_t> next = {0, 0, 0, 0};
  for (int i = 0; i < 800; ++i) {
    const std::uint64_t sequence = std::get<Heartbeat>(to_primary_->receive(kPatience)->message).sequence;
    EXPECT_EQ(sequence % 1000, next[sequence / 1000]++);
  }
  for (std::thread& thread : threads) thread.join();
}

TEST_F(LinkTest, AStrangerIsDroppedAndTheNextPeerAccepted) {
  listen();
  const SecretKey stranger = SecretKey::generate();
  EXPECT_THROW(static_cast<void>(Link::connect(address(), stranger, backup_.public_key())), LinkError);
  EXPECT_EQ(listener_->rejected(), 1u);
  const auto link = connect();
  EXPECT_NE(listener_->accept(kPatience), nullptr);
}

TEST_F(LinkTest, ABackupWithAnotherKeyIsRefused) {
  listen();
  EXPECT_THROW(static_cast<void>(Link::connect(address(), primary_, SecretKey::generate().public_key())),
               LinkError);
}

TEST_F(LinkTest, GarbageIsDroppedAndTheNextPeerAccepted) {
  listen();
  const RawClient client(listener_->port());
  client.send(Bytes(4096, std::byte{'G'}));
  client.wait_for_close();
  const auto link = connect();
  EXPECT_NE(listener_->accept(kPatience), nullptr);
  EXPECT_EQ(listener_->rejected(), 1u);
}

TEST_F(LinkTest, ASilentPeerIsDroppedAtTheDeadline) {
  LinkOptions options;
  options.deadline = 200ms;
  listen(options);
  const RawClient silent(listener_->port());
  const RawClient slow(listener_->port());
  slow.send(Bytes(3, std::byte{'P'}));
  silent.wait_for_close();
  slow.wait_for_close();
  EXPECT_EQ(listener_->accept(0s), nullptr);
}

TEST_F(LinkTest, HalfOpenPeersDoNotKeepOthersOutForever) {
  LinkOptions options;
  options.deadline = 200ms;
  listen(options);
  // More than the handshakes that may be in progress.
  std::vector<std::unique_ptr<RawClient>> crowd;
  for (int i = 0; i < 40; ++i) crowd.push_back(std::make_unique<RawClient>(listener_->port()));
  const auto link = connect();
  EXPECT_NE(listener_->accept(kPatience), nullptr);
}

TEST_F(LinkTest, NobodyThereIsAClearError) {
  listen();
  const Address gone = address();
  listener_.reset();
  try {
    static_cast<void>(Link::connect(gone, primary_, backup_.public_key()));
    FAIL();
  } catch (const LinkError& error) {
    EXPECT_THAT(error.what(), HasSubstr("cannot connect to " + to_string(gone) + ": Connection refused"));
  }
}

TEST_F(LinkTest, AMuteServerIsGivenUpAtTheDeadline) {
  const Fd server(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_in bound{};
  bound.sin_family = AF_INET;
  bound.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  ASSERT_EQ(::bind(server.get(), reinterpret_cast<const sockaddr*>(&bound), sizeof bound), 0);
  ASSERT_EQ(::listen(server.get(), 1), 0);
  socklen_t length = sizeof bound;
  ASSERT_EQ(::getsockname(server.get(), reinterpret_cast<sockaddr*>(&bound), &length), 0);
  LinkOptions options;
  options.deadline = 100ms;
  try {
    static_cast<void>(
        Link::connect({"127.0.0.1", ntohs(bound.sin_port)}, primary_, backup_.public_key(), options));
    FAIL();
  } catch (const LinkError& error) {
    EXPECT_THAT(error.what(), HasSubstr("no answer in time"));
  }
}

TEST_F(LinkTest, AnAddressInUseIsAUsersError) {
  listen();
  EXPECT_THROW(Listener(address(), backup_, {primary_.public_key()}), UsageError);
}

TEST_F(LinkTest, ClosingTheListenerFreesAccept) {
  listen();
  auto accepting = std::async(std::launch::async, [&] { return listener_->accept(kPatience); });
  listener_->close();
  EXPECT_EQ(accepting.get(), nullptr);
}

TEST_F(LinkTest, LinksNobodyAcceptedAreClosedWithTheListener) {
  listen();
  const auto link = connect();
  listener_.reset();
  EXPECT_FALSE(link->receive(kPatience));
  EXPECT_FALSE(link->is_up());
}

// Stands between the two ends of a link: passes everything on, until it is told to spoil what comes next.
class Relay {
 public:
  // What to do to the next bytes of the primary's. False: both connections are closed after them.
  using Spoil = std::function<bool(Bytes& bytes)>;

  explicit Relay(std::uint16_t to) : listening_(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)) {
    sockaddr_in bound = loopback(0);
    EXPECT_EQ(::bind(listening_.get(), reinterpret_cast<const sockaddr*>(&bound), sizeof bound), 0);
    EXPECT_EQ(::listen(listening_.get(), 1), 0);
    socklen_t length = sizeof bound;
    EXPECT_EQ(::getsockname(listening_.get(), reinterpret_cast<sockaddr*>(&bound), &length), 0);
    port_ = ntohs(bound.sin_port);
    thread_ = std::thread([this, to] { run(to); });
  }
  ~Relay() {
    ::shutdown(listening_.get(), SHUT_RDWR);
    hang_up();
    thread_.join();
  }

  [[nodiscard]] std::uint16_t port() const { return port_; }
  void spoil_next(Spoil spoil) {
    const std::lock_guard lock(mutex_);
    spoil_ = std::move(spoil);
  }

 private:
  static sockaddr_in loopback(std::uint16_t port) {
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(port);
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    return address;
  }

  void run(std::uint16_t to) {
    Fd primary(::accept4(listening_.get(), nullptr, nullptr, SOCK_CLOEXEC));
    Fd backup(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    const sockaddr_in address = loopback(to);
    if (!primary || ::connect(backup.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0) return;
    {
      const std::lock_guard lock(mutex_);
      primary_ = std::move(primary);
      backup_ = std::move(backup);
    }
    std::thread back([this] { pass(backup_, primary_, false); });
    pass(primary_, backup_, true);
    back.join();
  }

  void pass(const Fd& from, const Fd& to, bool primarys) {
    Bytes buffer(1 << 16);
    for (;;) {
      const auto got = ::recv(from.get(), buffer.data(), buffer.size(), 0);
      if (got <= 0) return hang_up();
      Bytes bytes(buffer.begin(), buffer.begin() + got);
      const bool goes_on = !primarys || spoil(bytes);
      for (std::size_t sent = 0; sent < bytes.size();) {
        const auto put = ::send(to.get(), bytes.data() + sent, bytes.size() - sent, MSG_NOSIGNAL);
        if (put <= 0) return hang_up();
        sent += static_cast<std::size_t>(put);
      }
      if (!goes_on) return hang_up();
    }
  }

  bool spoil(Bytes& bytes) {
    const std::lock_guard lock(mutex_);
    return !spoil_ || std::exchange(spoil_, nullptr)(bytes);
  }

  void hang_up() {
    const std::lock_guard lock(mutex_);
    for (const Fd* end : {&primary_, &backup_}) {
      if (*end) ::shutdown(end->get(), SHUT_RDWR);
    }
  }

  Fd listening_;
  std::uint16_t port_ = 0;
  std::mutex mutex_;
  Spoil spoil_;
  Fd primary_;
  Fd backup_;
  std::thread thread_;
};

class SpoiledLinkTest : public LinkTest {
 protected:
  // A link on which one message went through, and the next is spoilt on its way: why it is down at the other end.
  std::string reason_of(const Message& message, const Bytes& body, Relay::Spoil spoil) {
    listen();
    Relay relay(listener_->port());
    to_backup_ = Link::connect({"127.0.0.1", relay.port()}, primary_, backup_.public_key());
    to_primary_ = listener_->accept(kPatience);
    if (!to_primary_) return "no link";
    EXPECT_TRUE(to_backup_->send(EpochOpen{{1}}));
    EXPECT_EQ(to_primary_->receive(kPatience)->message, Message(EpochOpen{{1}}));

    relay.spoil_next(std::move(spoil));
    to_backup_->send(message, body);
    EXPECT_FALSE(to_primary_->receive(kPatience));  // nothing of it
    EXPECT_FALSE(to_primary_->is_up());
    EXPECT_FALSE(to_primary_->send(Ack{{1}}));
    EXPECT_FALSE(to_backup_->receive(kPatience));
    EXPECT_FALSE(to_backup_->is_up());  // the other end hears of it
    const std::string reason = to_primary_->down_reason();
    EXPECT_THAT(reason, ::testing::Not(HasSubstr("\n")));
    return reason;
  }

  static Relay::Spoil flip(std::size_t at) {
    return [at](Bytes& bytes) {
      EXPECT_LT(at, bytes.size());
      bytes.at(at) ^= std::byte{0x10};
      return true;
    };
  }
};

TEST_F(SpoiledLinkTest, AFlippedBitEndsTheLink) {
  // The prefix's lengths and number, the header behind it, the header's tag.
  EXPECT_EQ(reason_of(EpochOpen{{2}}, {}, flip(8)), "a frame is repeated or missing");
  EXPECT_EQ(reason_of(EpochOpen{{2}}, {}, flip(session::kPrefixBytes)), "a frame is not authentic");
  EXPECT_EQ(reason_of(EpochOpen{{2}}, {}, [](Bytes& bytes) {
    bytes.back() ^= std::byte{1};
    return true;
  }), "a frame is not authentic");
  EXPECT_EQ(reason_of(pages(2), pattern(2 * kPageSize, 1), [](Bytes& bytes) {
    bytes.at(bytes.size() / 2) ^= std::byte{1};  // somewhere in the pages
    return true;
  }), "a frame is not authentic");
}

TEST_F(SpoiledLinkTest, ATruncatedFrameEndsTheLink) {
  EXPECT_EQ(reason_of(pages(2), pattern(2 * kPageSize, 1), [](Bytes& bytes) {
    bytes.resize(bytes.size() / 2);
    return false;
  }), "the peer closed the connection");
}

TEST_F(SpoiledLinkTest, AnOversizedFrameEndsTheLinkBeforeMemoryIsTakenForIt) {
  for (const std::size_t length : {std::size_t{3}, std::size_t{7}}) {  // the highest byte of the header's, of the body's
    EXPECT_EQ(reason_of(EpochOpen{{2}}, {}, flip(length)), "a frame is longer than allowed");
  }
}

// Run by hand for docs/protocol.md: --gtest_also_run_disabled_tests --gtest_filter=*Throughput*
TEST_F(LinkTest, DISABLED_Throughput) {
  join();
  constexpr unsigned kMessages = 3000;
  const Bytes memory = pattern(64 << 20, 0);
  const auto begin = std::chrono::steady_clock::now();
  std::thread sender([&] {
    for (unsigned i = 0; i < kMessages; ++i) {
      std::vector<ByteView> scattered;
      for (std::size_t page = 0; page < 256; ++page) {
        const std::size_t at = (i * 256 + page * 37) % (memory.size() / kPageSize);
        scattered.push_back(ByteView(memory).subspan(at * kPageSize, kPageSize));
      }
      to_backup_->send(pages(256), scattered);
    }
  });
  for (unsigned i = 0; i < kMessages; ++i) ASSERT_TRUE(to_primary_->receive(kPatience));
  sender.join();
  const std::chrono::duration<double> time = std::chrono::steady_clock::now() - begin;
  std::printf("%s: %.2f GB/s\n", std::string(to_string(to_backup_->cipher())).c_str(),
              double(kMessages) * kMaxBodyBytes / 1e9 / time.count());
}

}  // namespace
}  // namespace pollux::protocol
