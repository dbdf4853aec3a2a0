#include "chaos/link_proxy.h"

#include <fmt/format.h>

#include <boost/asio.hpp>
#include <deque>
#include <future>
#include <list>
#include <optional>
#include <thread>
#include <vector>

#include "base/error.h"

namespace pollux::chaos {
namespace {

namespace asio = boost::asio;
using asio::ip::tcp;
using boost::system::error_code;
using Clock = std::chrono::steady_clock;

constexpr std::size_t index_of(Direction direction) { return static_cast<std::size_t>(direction); }

struct Chunk {
  std::vector<char> bytes;  // none: the sender's end
  Clock::time_point arrived;
};

// One direction of one connection.
struct Stream {
  Stream(asio::io_context& io, tcp::socket& source, tcp::socket& sink) : from(source), to(sink), changed(io), room(io) {}
  tcp::socket& from;
  tcp::socket& to;
  std::deque<Chunk> chunks;
  std::size_t buffered = 0;
  Clock::time_point next_write{};  // by the limit of bandwidth
  asio::steady_timer changed;      // cancelled when a chunk came or the conditions are others
  asio::steady_timer room;         // cancelled when a chunk left
};

struct Connection {
  explicit Connection(tcp::socket socket, asio::io_context& io)
      : source(std::move(socket)), target(io), streams{Stream(io, source, target), Stream(io, target, source)} {}
  tcp::socket source;
  tcp::socket target;
  std::array<Stream, 2> streams;
  int running = 2;  // directions

  void close() {
    error_code ignored;
    source.close(ignored);
    target.close(ignored);
    for (Stream& stream : streams) {
      stream.changed.cancel();
      stream.room.cancel();
    }
  }
};

}  // namespace

class LinkProxy::Impl {
 public:
  Impl(std::uint16_t target_port, std::uint16_t port) : target_(asio::ip::address_v4::loopback(), target_port) {
    try {
      const tcp::endpoint endpoint(asio::ip::address_v4::loopback(), port);
      acceptor_.open(endpoint.protocol());
      acceptor_.set_option(tcp::acceptor::reuse_address(true));
      acceptor_.bind(endpoint);
      acceptor_.listen();
      port_ = acceptor_.local_endpoint().port();
    } catch (const boost::system::system_error& error) {
      throw Error(fmt::format("link proxy: cannot listen on port {}: {}", port, error.code().message()));
    }
    asio::co_spawn(io_, accept_loop(), asio::detached);
    thread_ = std::thread([this] { io_.run(); });
  }

  ~Impl() {
    io_.stop();
    thread_.join();
  }

  [[nodiscard]] std::uint16_t port() const { return port_; }

  // Runs `action` on the proxy's thread and waits for it.
  template <class Action>
  auto on_thread(Action action) {
    return asio::post(io_, asio::use_future(std::move(action))).get();
  }

  void set(Direction direction, const LinkConditions& conditions) {
    conditions_[index_of(direction)] = conditions;
    wake_all();
  }

  void corrupt_next(Direction direction) { corrupt_[index_of(direction)] = true; }

  void disconnect() {
    for (const auto& connection : connections_) connection->close();
  }

  [[nodiscard]] LinkCounters counters() const { return counters_; }

 private:
  void wake_all() {
    healed_.cancel();
    for (const auto& connection : connections_) {
      for (Stream& stream : connection->streams) stream.changed.cancel();
    }
  }

  [[nodiscard]] bool cut() const { return conditions_[0].cut || conditions_[1].cut; }

  static asio::awaitable<void> wait(asio::steady_timer& timer, Clock::time_point until = Clock::time_point::max()) {
    error_code cancelled;
    timer.expires_at(until);
    co_await timer.async_wait(asio::redirect_error(asio::use_awaitable, cancelled));
  }

  asio::awaitable<void> accept_loop() {
    for (;;) {
      error_code error;
      tcp::socket socket(io_);
      co_await acceptor_.async_accept(socket, asio::redirect_error(asio::use_awaitable, error));
      if (error) {  // out of descriptors: not a reason to spin
        asio::steady_timer pause(io_);
        co_await wait(pause, Clock::now() + std::chrono::milliseconds(100));
        continue;
      }
      if (connections_.size() == kMaxConnections) continue;
      ++counters_.connections;
      connections_.push_back(std::make_shared<Connection>(std::move(socket), io_));
      asio::co_spawn(io_, connect(connections_.back()), asio::detached);
    }
  }

  asio::awaitable<void> connect(std::shared_ptr<Connection> connection) {
    while (cut()) co_await wait(healed_);
    error_code error = asio::error::operation_aborted;
    if (connection->source.is_open()) {
      co_await connection->target.async_connect(target_, asio::redirect_error(asio::use_awaitable, error));
    }
    if (error) {
      connection->close();
      connections_.remove(connection);
      co_return;
    }
    connection->source.set_option(tcp::no_delay(true));
    connection->target.set_option(tcp::no_delay(true));
    for (const Direction direction : kBothDirections) {
      asio::co_spawn(io_, read(connection, direction), asio::detached);
      asio::co_spawn(io_, write(connection, direction), asio::detached);
    }
  }

  asio::awaitable<void> read(std::shared_ptr<Connection> connection, Direction direction) {
    Stream& stream = connection->streams[index_of(direction)];
    for (;;) {
      while (stream.buffered >= kMaxBufferedBytes && stream.from.is_open()) co_await wait(stream.room);
      Chunk chunk{std::vector<char>(kChunkBytes), {}};
      error_code error;
      const std::size_t size = co_await stream.from.async_read_some(
          asio::buffer(chunk.bytes), asio::redirect_error(asio::use_awaitable, error));
      chunk.bytes.resize(error ? 0 : size);
      chunk.arrived = Clock::now();
      stream.buffered += chunk.bytes.size();
      stream.chunks.push_back(std::move(chunk));
      stream.changed.cancel();
      if (error) co_return;
    }
  }

  // When the stream's first chunk may leave; nothing: not before something changes.
  [[nodiscard]] std::optional<Clock::time_point> due(const Stream& stream, Direction direction) const {
    const LinkConditions& conditions = conditions_[index_of(direction)];
    if (stream.chunks.empty() || conditions.cut) return std::nullopt;
    const Clock::time_point after_latency = stream.chunks.front().arrived + conditions.latency;
    return conditions.bytes_per_second == 0 ? after_latency : std::max(after_latency, stream.next_write);
  }

  asio::awaitable<void> write(std::shared_ptr<Connection> connection, Direction direction) {
    Stream& stream = connection->streams[index_of(direction)];
    for (error_code error; !error && stream.to.is_open();) {
      const auto at = due(stream, direction);
      if (!at || *at > Clock::now()) {
        co_await wait(stream.changed, at.value_or(Clock::time_point::max()));
        continue;
      }
      Chunk chunk = std::move(stream.chunks.front());
      stream.chunks.pop_front();
      if (chunk.bytes.empty()) {
        stream.to.shutdown(tcp::socket::shutdown_send, error);
        break;
      }
      pass(chunk, stream, direction);
      co_await asio::async_write(stream.to, asio::buffer(chunk.bytes), asio::redirect_error(asio::use_awaitable, error));
      stream.buffered -= chunk.bytes.size();
      stream.room.cancel();
      if (error) connection->close();
    }
    if (--connection->running == 0) {
      connection->close();
      connections_.remove(connection);
    }
  }

  void pass(Chunk& chunk, Stream& stream, Direction direction) {
    const std::size_t index = index_of(direction);
    if (corrupt_[index]) {
      corrupt_[index] = false;
      ++counters_.corrupted;
      chunk.bytes[chunk.bytes.size() / 2] ^= 0x10;
    }
    counters_.bytes[index] += chunk.bytes.size();
    if (const std::uint64_t rate = conditions_[index].bytes_per_second; rate != 0) {
      stream.next_write =
          Clock::now() + std::chrono::nanoseconds(chunk.bytes.size() * std::uint64_t{1'000'000'000} / rate);
    }
  }

  // All of the proxy's thread, once it runs.
  asio::io_context io_{1};
  const tcp::endpoint target_;
  std::uint16_t port_ = 0;
  tcp::acceptor acceptor_{io_};
  asio::steady_timer healed_{io_};  // cancelled when the conditions change
  std::array<LinkConditions, 2> conditions_{};
  std::array<bool, 2> corrupt_{};
  LinkCounters counters_;
  std::list<std::shared_ptr<Connection>> connections_;
  std::thread thread_;
};

LinkProxy::LinkProxy(std::uint16_t target_port, std::uint16_t port) : impl_(std::make_unique<Impl>(target_port, port)) {}
LinkProxy::~LinkProxy() = default;

std::uint16_t LinkProxy::port() const { return impl_->port(); }

void LinkProxy::set(Direction direction, const LinkConditions& conditions) {
  impl_->on_thread([&] { impl_->set(direction, conditions); });
}

void LinkProxy::cut() {
  impl_->on_thread([&] {
    for (const Direction direction : kBothDirections) impl_->set(direction, {.cut = true});
  });
}

void LinkProxy::heal() {
  impl_->on_thread([&] {
    for (const Direction direction : kBothDirections) impl_->set(direction, {});
  });
}

void LinkProxy::corrupt_next(Direction direction) {
  impl_->on_thread([&] { impl_->corrupt_next(direction); });
}

void LinkProxy::disconnect() {
  impl_->on_thread([&] { impl_->disconnect(); });
}

LinkCounters LinkProxy::counters() const {
  return impl_->on_thread([&] { return impl_->counters(); });
}

}  // namespace pollux::chaos
