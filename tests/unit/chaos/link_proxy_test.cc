#include "chaos/link_proxy.h"

#include <gtest/gtest.h>

#include <arpa/inet.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <string>
#include <thread>

#include "base/error.h"
#include "base/fd.h"

namespace pollux::chaos {
namespace {

using std::chrono::milliseconds;
using Clock = std::chrono::steady_clock;

sockaddr_in loopback(std::uint16_t port) {
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  address.sin_port = htons(port);
  return address;
}

Fd tcp_socket() { return Fd(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)); }

Fd connect_to(std::uint16_t port) {
  Fd socket = tcp_socket();
  const sockaddr_in address = loopback(port);
  EXPECT_EQ(::connect(socket.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address), 0);
  return socket;
}

bool readable(const Fd& socket, milliseconds wait) {
  pollfd poll{socket.get(), POLLIN, 0};
  return ::poll(&poll, 1, static_cast<int>(wait.count())) == 1;
}

void send_text(const Fd& socket, const std::string& text) {
  ASSERT_EQ(::send(socket.get(), text.data(), text.size(), MSG_NOSIGNAL), static_cast<ssize_t>(text.size()));
}

std::string receive(const Fd& socket, std::size_t size) {
  std::string text(size, '\0');
  std::size_t have = 0;
  while (have < size && readable(socket, milliseconds(20'000))) {
    const ssize_t got = ::recv(socket.get(), text.data() + have, size - have, 0);
    if (got <= 0) break;
    have += static_cast<std::size_t>(got);
  }
  text.resize(have);
  return text;
}

constexpr milliseconds kQuiet{100};  // a stall is looked at for so long

class LinkProxyTest : public ::testing::Test {
 protected:
  LinkProxyTest() {
    const sockaddr_in any = loopback(0);
    EXPECT_EQ(::bind(listener_.get(), reinterpret_cast<const sockaddr*>(&any), sizeof any), 0);
    EXPECT_EQ(::listen(listener_.get(), 8), 0);
    sockaddr_in bound{};
    socklen_t size = sizeof bound;
    ::getsockname(listener_.get(), reinterpret_cast<sockaddr*>(&bound), &size);
    proxy_.emplace(ntohs(bound.sin_port));
  }
  Fd accept() { return Fd(::accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC)); }
  void connect() {
    client_ = connect_to(proxy_->port());
    server_ = accept();
  }

  Fd listener_ = tcp_socket();
  std::optional<LinkProxy> proxy_;
  Fd client_;
  Fd server_;
};

TEST_F(LinkProxyTest, PassesBothDirectionsAndTheEnd) {
  connect();
  send_text(client_, "ping");
  EXPECT_EQ(receive(server_, 4), "ping");
  send_text(server_, "pong");
  EXPECT_EQ(receive(client_, 4), "pong");
  ::shutdown(client_.get(), SHUT_WR);
  EXPECT_EQ(receive(server_, 1), "");
  send_text(server_, "last");
  EXPECT_EQ(receive(client_, 4), "last");
  EXPECT_EQ(proxy_->counters().bytes[0], 4U);
  EXPECT_EQ(proxy_->counters().bytes[1], 8U);
}

TEST_F(LinkProxyTest, ACutStallsAndTheHealLetsAllArrive) {
  connect();
  proxy_->cut();
  send_text(client_, "one");
  send_text(server_, "two");
  EXPECT_FALSE(readable(server_, kQuiet));
  EXPECT_FALSE(readable(client_, kQuiet));
  proxy_->heal();
  EXPECT_EQ(receive(server_, 3), "one");
  EXPECT_EQ(receive(client_, 3), "two");
}

TEST_F(LinkProxyTest, AConnectionMadeDuringACutArrivesAfterIt) {
  proxy_->cut();
  client_ = connect_to(proxy_->port());
  send_text(client_, "late");
  EXPECT_FALSE(readable(listener_, kQuiet));
  proxy_->heal();
  server_ = accept();
  EXPECT_EQ(receive(server_, 4), "late");
}

TEST_F(LinkProxyTest, AOneWayCutStallsOneDirection) {
  connect();
  proxy_->set(Direction::kForward, {.cut = true});
  send_text(client_, "one");
  send_text(server_, "two");
  EXPECT_EQ(receive(client_, 3), "two");
  EXPECT_FALSE(readable(server_, kQuiet));
  proxy_->heal();
  EXPECT_EQ(receive(server_, 3), "one");
}

TEST_F(LinkProxyTest, TheEndOfASenderDoesNotPassACut) {
  connect();
  proxy_->cut();
  client_.reset();
  EXPECT_FALSE(readable(server_, kQuiet));
  proxy_->heal();
  EXPECT_EQ(receive(server_, 1), "");
}

TEST_F(LinkProxyTest, LatencyDelaysAndKeepsTheOrder) {
  connect();
  proxy_->set(Direction::kForward, {.latency = milliseconds(50)});
  const auto sent = Clock::now();
  send_text(client_, "first ");
  send_text(client_, "second");
  EXPECT_EQ(receive(server_, 12), "first second");
  EXPECT_GE(Clock::now() - sent, milliseconds(50));
}

TEST_F(LinkProxyTest, BandwidthIsLimitedAndEndsWithTheHeal) {
  connect();
  const std::string text(64 << 10, 'x');
  proxy_->set(Direction::kForward, {.bytes_per_second = 256 << 10});
  const auto sent = Clock::now();
  send_text(client_, text);
  EXPECT_EQ(receive(server_, text.size()).size(), text.size());
  // All but the last chunk is waited for.
  EXPECT_GE(Clock::now() - sent, milliseconds(180));
  proxy_->set(Direction::kForward, {.bytes_per_second = 1});
  send_text(client_, text);
  EXPECT_TRUE(readable(server_, milliseconds(20'000)));
  proxy_->heal();
  EXPECT_EQ(receive(server_, text.size()).size(), text.size());
}

TEST_F(LinkProxyTest, CorruptsOneBitOnce) {
  connect();
  proxy_->corrupt_next(Direction::kForward);
  send_text(client_, "aaaa");
  const std::string got = receive(server_, 4);
  EXPECT_NE(got, "aaaa");
  EXPECT_EQ(got.size(), 4U);
  send_text(client_, "aaaa");
  EXPECT_EQ(receive(server_, 4), "aaaa");
  EXPECT_EQ(proxy_->counters().corrupted, 1U);
}

TEST_F(LinkProxyTest, DisconnectBreaksWhatThereIsAndTakesNewConnections) {
  connect();
  proxy_->disconnect();
  EXPECT_EQ(receive(client_, 1), "");
  EXPECT_EQ(receive(server_, 1), "");
  connect();
  send_text(client_, "again");
  EXPECT_EQ(receive(server_, 5), "again");
}

TEST_F(LinkProxyTest, AStalledSenderIsStoppedByBoundedBuffers) {
  connect();
  proxy_->cut();
  const std::string block(64 << 10, 'b');
  std::size_t sent = 0;
  for (;;) {
    pollfd poll{client_.get(), POLLOUT, 0};
    if (::poll(&poll, 1, 500) != 1) break;  // full
    const ssize_t wrote = ::send(client_.get(), block.data(), block.size(), MSG_DONTWAIT | MSG_NOSIGNAL);
    if (wrote > 0) sent += static_cast<std::size_t>(wrote);
    ASSERT_LT(sent, std::size_t{64} << 20);
  }
  proxy_->heal();
  EXPECT_EQ(receive(server_, sent).size(), sent);
}

TEST_F(LinkProxyTest, AStreamPassesUnchangedWhileTheLinkIsHarmed) {
  connect();
  std::string text(2 << 20, '\0');
  for (std::size_t i = 0; i < text.size(); ++i) text[i] = static_cast<char>(i * 2654435761U >> 13);
  std::thread sender([&] {
    for (std::size_t at = 0; at < text.size(); at += 4096) send_text(client_, text.substr(at, 4096));
  });
  std::thread harm([&] {
    for (int i = 0; i < 40; ++i) {
      proxy_->cut();
      proxy_->set(Direction::kForward, {.latency = milliseconds(1), .bytes_per_second = 64 << 20});
      proxy_->heal();
    }
  });
  EXPECT_EQ(receive(server_, text.size()), text);
  sender.join();
  harm.join();
}

TEST_F(LinkProxyTest, ATargetThatIsNotThereClosesTheConnection) {
  listener_.reset();
  client_ = connect_to(proxy_->port());
  EXPECT_EQ(receive(client_, 1), "");
}

TEST(LinkProxy, SaysThatAPortIsTaken) {
  const LinkProxy first(1);
  EXPECT_THROW(LinkProxy(1, first.port()), Error);
}

}  // namespace
}  // namespace pollux::chaos
