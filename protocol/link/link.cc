#include "protocol/link/link.h"

#include <fmt/format.h>
#include <spdlog/spdlog.h>
#include <sys/socket.h>
#include <sys/uio.h>

#include <algorithm>
#include <atomic>
#include <boost/asio/awaitable.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/connect.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/executor_work_guard.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/read.hpp>
#include <boost/asio/redirect_error.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <boost/asio/write.hpp>
#include <condition_variable>
#include <deque>
#include <exception>
#include <mutex>
#include <thread>
#include <utility>

#include "base/thread_name.h"
#include "protocol/session/sealed_frame.h"

namespace pollux::protocol {
namespace {

namespace asio = boost::asio;
using asio::use_awaitable;
using asio::ip::tcp;
using boost::system::error_code;
using boost::system::system_error;

// Handshakes in progress at one listener; further connections wait in the kernel's backlog.
constexpr std::size_t kMaxHandshakes = 16;
// Authenticated links that accept() has not taken yet; one more is dropped.
constexpr std::size_t kMaxUnacceptedLinks = 8;
// One write to the socket takes at most so many frames and about so many bytes, so that room appears
// steadily.
constexpr std::size_t kMaxBatchFrames = 32;
constexpr std::size_t kMaxBatchBytes = 1 << 20;
// If all that is queued is at most so long, the sender itself writes it to the socket, and the I/O thread need not wake. More
// is left to that thread, so that the sender can seal the next frame meanwhile.
constexpr std::size_t kWrittenAtOnceBytes = 16 << 10;
// A read of fewer bytes than this fills the read buffer, with whatever follows on the socket; a longer one reads straight
// into its destination.
constexpr std::size_t kReadAheadBytes = 16 << 10;
// Buffers of frames longer than this are kept and used again.
constexpr std::size_t kSmallFrameBytes = 64 << 10;
constexpr std::size_t kMaxIdleBuffers = 8;

constexpr session::FrameLimits kFrameLimits{kMaxHeaderBytes, kMaxBodyBytes};
constexpr std::size_t kMaxFrameBytes = session::sealed_frame_bytes({kMaxHeaderBytes, kMaxBodyBytes});

// A sealed frame on its way to the socket. Not Bytes: those would be filled with zeros first.
struct Frame {
  std::unique_ptr<std::byte[]> bytes;
  std::size_t capacity = 0;
  std::size_t size = 0;
  std::size_t written = 0;
  [[nodiscard]] std::size_t left() const { return size - written; }
  [[nodiscard]] asio::const_buffer unwritten() const { return {bytes.get() + written, left()}; }
};

std::string describe(const tcp::endpoint& endpoint) {
  return to_string(Address{endpoint.address().to_string(), endpoint.port()});
}

// The peer's end, for logs; a connection may be gone before it can be asked.
std::string describe_peer(const tcp::socket& socket) {
  error_code error;
  const tcp::endpoint endpoint = socket.remote_endpoint(error);
  return error ? "an unknown peer" : describe(endpoint);
}

std::string describe(const std::exception_ptr& failure) {
  try {
    std::rethrow_exception(failure);
  } catch (const system_error& error) {
    if (error.code() == asio::error::eof) return "the peer closed the connection";
    return error.code().message();
  } catch (const std::exception& error) {
    return error.what();
  }
}

// The handshake over a socket. Buffers are of fixed, small size; deadlines are the caller's.

template <std::size_t N>
asio::awaitable<std::array<std::byte, N>> read_exactly(tcp::socket& socket) {
  std::array<std::byte, N> message;
  co_await asio::async_read(socket, asio::buffer(message), use_awaitable);
  co_return message;
}

asio::awaitable<void> write_all(tcp::socket& socket, Bytes message) {
  co_await asio::async_write(socket, asio::buffer(message), use_awaitable);
}

asio::awaitable<session::SessionKeys> initiate(tcp::socket& socket, const session::SecretKey& own,
                                               const session::PublicKey& peer, session::CipherSet ciphers) {
  session::Initiator initiator(own, peer, ciphers);
  co_await write_all(socket, initiator.message1());
  const auto message2 = co_await read_exactly<session::kMessage2Bytes>(socket);
  co_await write_all(socket, initiator.message3(message2));
  const auto message4 = co_await read_exactly<session::kConfirmationBytes>(socket);
  co_return initiator.finish(message4);
}

asio::awaitable<session::SessionKeys> respond(tcp::socket& socket, const session::SecretKey& own,
                                              const std::vector<session::PublicKey>& accepted,
                                              session::CipherSet ciphers) {
  session::Responder responder(own, accepted, ciphers);
  const auto message1 = co_await read_exactly<session::kMessage1Bytes>(socket);
  co_await write_all(socket, responder.message2(message1));
  const auto message3 = co_await read_exactly<session::kConfirmationBytes>(socket);
  co_await write_all(socket, responder.message4(message3));
  co_return responder.finish();
}

}  // namespace

struct Link::Impl {
  struct Inbound {
    Received received;
    std::size_t bytes = 0;  // on the wire; decoded it takes about as much
  };

  explicit Impl(const LinkOptions& link_options) : options(link_options) {}
  ~Impl();

  void adopt(session::SessionKeys keys);
  void start();

  bool send(const Message& message, std::span<const ByteView> body, More more);
  std::optional<Received> receive(std::chrono::nanoseconds timeout);
  bool flush(std::chrono::nanoseconds timeout);
  void set_callback(std::function<void()> function);
  void go_down(const std::string& why);

  [[nodiscard]] bool can_send() const { return up && !send_failed; }  // under the mutex
  bool wait_for_room(std::size_t bytes);
  Frame take_buffer(std::size_t bytes);
  void enqueue(Frame frame, More more);
  void write_at_once();
  void start_writing();
  std::vector<Frame> take_batch();
  void batch_written(std::vector<Frame> batch);
  [[nodiscard]] bool deliver(Inbound input);
  [[nodiscard]] bool another_frame_is_here() const;
  void announce();
  void notify_activity();

  asio::awaitable<void> write_loop();
  asio::awaitable<void> read_loop();
  asio::awaitable<void> read_fully(MutableByteView into);
  asio::awaitable<Inbound> read_frame();
  asio::awaitable<void> wait_until_wanted();

  // First, so that it goes last: it owns the coroutines' frames.
  asio::io_context io{1};
  std::optional<asio::executor_work_guard<asio::io_context::executor_type>> work;
  tcp::socket socket{io};
  asio::steady_timer wanted{io};  // cancelled when the receiver made room
  const LinkOptions options;
  session::PublicKey peer;
  std::string peer_address;
  session::Cipher cipher = session::Cipher::kChaCha20Poly1305;

  // Sealing and queueing are one step: frames go out in the order of their nonces.
  std::mutex sealing;
  std::optional<session::Sealer> sealer;
  // Of the I/O thread.
  std::optional<session::Opener> opener;
  Bytes sealed_input;
  std::array<std::byte, kReadAheadBytes> read_buffer;
  ByteView read_ahead;  // in read_buffer: read and not taken yet

  std::mutex mutex;  // guards all below
  std::condition_variable room;
  std::condition_variable readable;
  std::condition_variable flushed;
  bool up = true;
  bool send_failed = false;
  std::string down_reason;
  std::deque<Frame> outbound;
  std::vector<Frame> idle_buffers;
  std::size_t outbound_bytes = 0;  // queued and being written
  bool writing = false;            // write_loop() runs
  TimePoint last_written;
  std::deque<Inbound> inbound;
  std::size_t inbound_bytes = 0;
  bool reader_waits = false;

  std::atomic<std::uint64_t> sent_bytes = 0;
  std::atomic<TimePoint> last_received{std::chrono::steady_clock::now()};
  std::mutex callback_mutex;
  std::function<void()> callback;
  std::thread thread;
};

Link::Impl::~Impl() {
  go_down("closed");
  io.stop();
  if (thread.joinable()) thread.join();
}

void Link::Impl::adopt(session::SessionKeys keys) {
  peer = keys.peer;
  cipher = keys.cipher;
  sealer.emplace(keys.cipher, std::move(keys.send));
  opener.emplace(keys.cipher, std::move(keys.receive), kFrameLimits);
}

void Link::Impl::start() {
  // Small messages (acks) decide the latency of a commit: they may not wait for more bytes.
  error_code ignored;
  socket.set_option(tcp::no_delay(true), ignored);
  last_received = std::chrono::steady_clock::now();
  work.emplace(io.get_executor());
  asio::co_spawn(io, read_loop(), asio::detached);
  thread = std::thread([this] {
    name_this_thread("link");
    io.run();
  });
}

// Sending.

bool Link::Impl::send(const Message& message, std::span<const ByteView> body, More more) {
  std::size_t body_bytes = 0;
  for (const ByteView piece : body) body_bytes += piece.size();
  POLLUX_ASSERT(body_bytes == body_length(message));
  const Bytes header = encode(message);
  const std::size_t bytes = session::sealed_frame_bytes(
      {static_cast<std::uint32_t>(header.size()), static_cast<std::uint32_t>(body_bytes)});
  POLLUX_ASSERT(bytes <= kMaxFrameBytes);

  const std::lock_guard in_order(sealing);
  if (!wait_for_room(bytes)) return false;
  sent_bytes += bytes;
  Frame frame = take_buffer(bytes);
  sealer->seal(header, body, {frame.bytes.get(), frame.size});
  enqueue(std::move(frame), more);
  return true;
}

// A frame longer than the whole queue passes when the queue is empty.
bool Link::Impl::wait_for_room(std::size_t bytes) {
  std::unique_lock lock(mutex);
  const auto ready = [&] {
    return !can_send() || outbound_bytes == 0 || outbound_bytes + bytes <= options.send_queue_bytes;
  };
  if (!ready()) start_writing();  // what waited for this frame
  TimePoint since = std::chrono::steady_clock::now();
  while (!ready()) {
    since = std::max({since, last_written, last_received.load()});
    if (room.wait_until(lock, since + options.stall_timeout, ready)) break;
    if (since < std::max(last_written, last_received.load())) continue;
    lock.unlock();
    go_down(fmt::format("the peer takes no data and is silent for {} ms", options.stall_timeout.count()));
    return false;
  }
  return can_send();
}

Frame Link::Impl::take_buffer(std::size_t bytes) {
  const std::size_t capacity = bytes > kSmallFrameBytes ? kMaxFrameBytes : bytes;
  {
    const std::lock_guard lock(mutex);
    if (capacity == kMaxFrameBytes && !idle_buffers.empty()) {
      Frame frame = std::move(idle_buffers.back());
      idle_buffers.pop_back();
      frame.size = bytes;
      frame.written = 0;
      return frame;
    }
  }
  return {std::make_unique_for_overwrite<std::byte[]>(capacity), capacity, bytes, 0};
}

void Link::Impl::enqueue(Frame frame, More more) {
  const std::lock_guard lock(mutex);
  outbound_bytes += frame.left();
  outbound.push_back(std::move(frame));
  if (writing || !can_send()) return;
  const bool little = outbound_bytes <= kWrittenAtOnceBytes && outbound.size() <= kMaxBatchFrames;
  if (little && more == More::kYes) return;
  if (little) write_at_once();
  start_writing();
}

// Everything that is queued, in one call, as far as the kernel takes it now. Under the mutex, without which nobody closes the
// socket. Errors are the write loop's matter.
void Link::Impl::write_at_once() {
  std::array<iovec, kMaxBatchFrames> pieces;
  POLLUX_ASSERT(!writing && outbound.size() <= pieces.size());
  std::ranges::transform(outbound, pieces.begin(), [](const Frame& frame) {
    return iovec{frame.bytes.get() + frame.written, frame.left()};
  });
  msghdr message{};
  message.msg_iov = pieces.data();
  message.msg_iovlen = outbound.size();
  const auto sent = ::sendmsg(socket.native_handle(), &message, MSG_DONTWAIT | MSG_NOSIGNAL);
  if (sent <= 0) return;
  last_written = std::chrono::steady_clock::now();
  auto taken = static_cast<std::size_t>(sent);
  outbound_bytes -= taken;
  while (!outbound.empty() && taken >= outbound.front().left()) {
    taken -= outbound.front().left();
    outbound.pop_front();
  }
  if (!outbound.empty()) outbound.front().written += taken;
  if (outbound_bytes == 0) flushed.notify_all();
}

// Under the mutex.
void Link::Impl::start_writing() {
  if (writing || outbound.empty() || !can_send()) return;
  writing = true;
  asio::co_spawn(io, write_loop(), asio::detached);
}

std::vector<Frame> Link::Impl::take_batch() {
  const std::lock_guard lock(mutex);
  std::vector<Frame> batch;
  for (std::size_t bytes = 0;
       !outbound.empty() && batch.size() < kMaxBatchFrames && bytes < kMaxBatchBytes;) {
    bytes += outbound.front().left();
    batch.push_back(std::move(outbound.front()));
    outbound.pop_front();
  }
  if (batch.empty()) writing = false;
  return batch;
}

void Link::Impl::batch_written(std::vector<Frame> batch) {
  const std::lock_guard lock(mutex);
  last_written = std::chrono::steady_clock::now();
  for (Frame& frame : batch) {
    outbound_bytes -= frame.left();
    if (frame.capacity == kMaxFrameBytes && idle_buffers.size() < kMaxIdleBuffers) {
      idle_buffers.push_back(std::move(frame));
    }
  }
  room.notify_all();
  if (outbound_bytes == 0) flushed.notify_all();
}

asio::awaitable<void> Link::Impl::write_loop() {
  try {
    for (;;) {
      std::vector<Frame> batch = take_batch();
      if (batch.empty()) co_return;
      std::vector<asio::const_buffer> buffers;
      buffers.reserve(batch.size());
      for (const Frame& frame : batch) buffers.push_back(frame.unwritten());
      co_await asio::async_write(socket, buffers, use_awaitable);
      batch_written(std::move(batch));
    }
  } catch (const std::exception&) {
    // The link is down when the reader says so: what the peer said last may still lie in the socket.
    const std::lock_guard lock(mutex);
    send_failed = true;
    room.notify_all();
    flushed.notify_all();
  }
}

// Receiving.

asio::awaitable<void> Link::Impl::read_loop() {
  try {
    for (;;) {
      co_await wait_until_wanted();
      const bool has_room = deliver(co_await read_frame());
      if (!has_room || !another_frame_is_here()) announce();
    }
  } catch (...) {
    go_down(describe(std::current_exception()));
  }
}

// Stops reading while the receiver's queue is full; TCP's window then stops the peer.
asio::awaitable<void> Link::Impl::wait_until_wanted() {
  {
    const std::lock_guard lock(mutex);
    if (inbound_bytes < options.receive_queue_bytes) co_return;
    reader_waits = true;
  }
  // The cancellation is posted to this thread, so it cannot come before the wait.
  wanted.expires_at(asio::steady_timer::time_point::max());
  error_code cancelled;
  co_await wanted.async_wait(asio::redirect_error(use_awaitable, cancelled));
}

// Like asio::async_read, but every arrival of bytes counts as a sign of life, not only the last.
asio::awaitable<void> Link::Impl::read_fully(MutableByteView into) {
  while (!into.empty()) {
    if (read_ahead.empty()) {
      const bool is_short = into.size() < read_buffer.size();
      const MutableByteView place = is_short ? MutableByteView(read_buffer) : into;
      const std::size_t bytes = co_await socket.async_read_some(asio::buffer(place.data(), place.size()), use_awaitable);
      last_received = std::chrono::steady_clock::now();
      if (!is_short) {
        into = into.subspan(bytes);
        continue;
      }
      read_ahead = place.first(bytes);
    }
    const std::size_t bytes = std::min(into.size(), read_ahead.size());
    std::ranges::copy(read_ahead.first(bytes), into.begin());
    read_ahead = read_ahead.subspan(bytes);
    into = into.subspan(bytes);
  }
}

asio::awaitable<Link::Impl::Inbound> Link::Impl::read_frame() {
  std::array<std::byte, session::kPrefixBytes> prefix;
  co_await read_fully(prefix);
  const session::FrameLengths lengths = opener->begin(prefix);
  const std::size_t header_bytes = session::sealed_header_bytes(lengths.header);
  const std::size_t sealed_bytes = header_bytes + session::sealed_body_bytes(lengths.body);
  if (sealed_input.size() < sealed_bytes) sealed_input.resize(sealed_bytes);
  const MutableByteView sealed = MutableByteView(sealed_input).first(sealed_bytes);
  co_await read_fully(sealed);

  const ByteView header = opener->open_header(sealed.first(header_bytes));
  Received received;
  received.message = decode(header, lengths.body);
  received.body.resize(lengths.body);
  opener->open_body(sealed.subspan(header_bytes), received.body);
  co_return Inbound{std::move(received), sealed_bytes};
}

// Whether there is room for another.
bool Link::Impl::deliver(Inbound input) {
  const std::lock_guard lock(mutex);
  inbound_bytes += input.bytes;
  inbound.push_back(std::move(input));
  return inbound_bytes < options.receive_queue_bytes;
}

// A whole one: the receiver is woken after it, once for all that came together.
bool Link::Impl::another_frame_is_here() const {
  if (read_ahead.size() < session::kPrefixBytes) return false;
  return read_ahead.size() >= session::sealed_frame_bytes(session::unverified_lengths(read_ahead.first(session::kPrefixBytes)));
}

void Link::Impl::announce() {
  readable.notify_one();
  notify_activity();
}

std::optional<Received> Link::Impl::receive(std::chrono::nanoseconds timeout) {
  std::unique_lock lock(mutex);
  // Even a wait that is over at once sets a timer, and that is what takes longest here in a nested virtual machine.
  if (timeout > std::chrono::nanoseconds(0)) readable.wait_for(lock, timeout, [this] { return !inbound.empty() || !up; });
  if (inbound.empty()) return std::nullopt;
  Received received = std::move(inbound.front().received);
  inbound_bytes -= inbound.front().bytes;
  inbound.pop_front();
  if (reader_waits && inbound_bytes < options.receive_queue_bytes) {
    reader_waits = false;
    asio::post(io, [this] { wanted.cancel(); });
  }
  return received;
}

// The end, and what the callers see.

void Link::Impl::go_down(const std::string& why) {
  {
    const std::lock_guard lock(mutex);
    if (!up) return;
    up = false;
    down_reason = why;
  }
  room.notify_all();
  readable.notify_all();
  flushed.notify_all();
  // After `up` is seen to be false nobody else touches the socket: see write_at_once().
  asio::post(io, [this] {
    error_code ignored;
    socket.shutdown(tcp::socket::shutdown_both, ignored);
    socket.close(ignored);
    wanted.cancel();
    notify_activity();
  });
}

bool Link::Impl::flush(std::chrono::nanoseconds timeout) {
  std::unique_lock lock(mutex);
  flushed.wait_for(lock, timeout, [this] {
    start_writing();  // what waits for more
    return outbound_bytes == 0 || !can_send();
  });
  return outbound_bytes == 0 && can_send();
}

void Link::Impl::notify_activity() {
  const std::lock_guard lock(callback_mutex);
  if (callback) callback();
}

void Link::Impl::set_callback(std::function<void()> function) {
  const std::lock_guard lock(callback_mutex);
  callback = std::move(function);
  bool pending = false;
  {
    const std::lock_guard state(mutex);
    pending = !inbound.empty() || !up;
  }
  if (pending && callback) callback();
}

namespace {

// Resolves, connects, and does the handshake. Runs on the caller's thread, within connect()'s deadline.
asio::awaitable<session::SessionKeys> open(tcp::socket& socket, tcp::resolver& resolver,
                                           const Address& address, const session::SecretKey& own,
                                           const session::PublicKey& peer, session::CipherSet ciphers) {
  const auto endpoints =
      co_await resolver.async_resolve(address.host, std::to_string(address.port), use_awaitable);
  co_await asio::async_connect(socket, endpoints, use_awaitable);
  co_return co_await initiate(socket, own, peer, ciphers);
}

}  // namespace

Link::Link(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Link::~Link() = default;

std::unique_ptr<Link> Link::connect(const Address& address, const session::SecretKey& own,
                                    const session::PublicKey& peer, const LinkOptions& options) {
  auto impl = std::make_unique<Impl>(options);
  tcp::resolver resolver(impl->io);
  asio::steady_timer deadline(impl->io, options.deadline);
  bool late = false;
  deadline.async_wait([&](error_code error) {
    if (error) return;
    late = true;
    resolver.cancel();
    impl->socket.close(error);
  });
  std::exception_ptr failure;
  asio::co_spawn(impl->io, open(impl->socket, resolver, address, own, peer, options.ciphers),
                 [&](std::exception_ptr result, session::SessionKeys keys) {
                   failure = result;
                   if (!failure) impl->adopt(std::move(keys));
                   deadline.cancel();
                 });
  impl->io.run();
  if (failure || late) {
    throw LinkError(fmt::format("cannot connect to {}: {}", to_string(address),
                                late ? "no answer in time" : describe(failure)));
  }
  impl->io.restart();
  impl->peer_address = describe_peer(impl->socket);
  impl->start();
  return std::unique_ptr<Link>(new Link(std::move(impl)));
}

bool Link::send(const Message& message, std::span<const ByteView> body, More more) {
  return impl_->send(message, body, more);
}

bool Link::send(const Message& message, ByteView body, More more) {
  return impl_->send(message, std::span<const ByteView>(&body, 1), more);
}

std::optional<Received> Link::receive(std::chrono::nanoseconds timeout) { return impl_->receive(timeout); }

bool Link::is_up() const {
  const std::lock_guard lock(impl_->mutex);
  return impl_->up;
}

std::string Link::down_reason() const {
  const std::lock_guard lock(impl_->mutex);
  return impl_->down_reason;
}

std::uint64_t Link::sent_bytes() const { return impl_->sent_bytes; }
TimePoint Link::last_received() const { return impl_->last_received; }
const session::PublicKey& Link::peer() const { return impl_->peer; }
const std::string& Link::peer_address() const { return impl_->peer_address; }
session::Cipher Link::cipher() const { return impl_->cipher; }
void Link::set_activity_callback(std::function<void()> callback) { impl_->set_callback(std::move(callback)); }
bool Link::flush(std::chrono::nanoseconds timeout) { return impl_->flush(timeout); }
void Link::close() { impl_->go_down("closed"); }

struct Listener::Impl {
  Impl(const session::SecretKey& own_key, std::vector<session::PublicKey> accepted_keys,
       const LinkOptions& link_options)
      : own(own_key), accepted(std::move(accepted_keys)), options(link_options) {}
  ~Impl();

  void bind(const Address& address);
  void close();
  void ready(std::unique_ptr<Link> link);
  void reject(const std::string& from, const std::string& why);
  std::unique_ptr<Link> make_link(tcp::socket& socket, session::SessionKeys keys, std::string from) const;
  asio::awaitable<void> accept_loop();
  asio::awaitable<void> handshake(std::shared_ptr<tcp::socket> socket);

  asio::io_context io{1};
  tcp::acceptor acceptor{io};
  asio::steady_timer slot_free{io};  // cancelled when a handshake ends
  const session::SecretKey& own;
  const std::vector<session::PublicKey> accepted;
  const LinkOptions options;
  std::size_t handshakes = 0;  // of the I/O thread
  std::uint16_t port = 0;

  std::mutex mutex;  // guards all below
  std::condition_variable arrived;
  std::deque<std::unique_ptr<Link>> links;
  std::uint64_t rejected = 0;
  bool closed = false;
  std::thread thread;
};

Listener::Impl::~Impl() {
  close();
  io.stop();
  if (thread.joinable()) thread.join();
}

void Listener::Impl::bind(const Address& address) {
  try {
    tcp::resolver resolver(io);
    const auto endpoints =
        resolver.resolve(address.host, std::to_string(address.port), tcp::resolver::passive);
    const tcp::endpoint endpoint = endpoints.begin()->endpoint();
    acceptor.open(endpoint.protocol());
    acceptor.set_option(tcp::acceptor::reuse_address(true));
    acceptor.bind(endpoint);
    acceptor.listen();
    port = acceptor.local_endpoint().port();
  } catch (const system_error& error) {
    throw UsageError(fmt::format("cannot listen on {}: {}", to_string(address), error.code().message()));
  }
}

void Listener::Impl::close() {
  {
    const std::lock_guard lock(mutex);
    closed = true;
  }
  arrived.notify_all();
  asio::post(io, [this] {
    error_code ignored;
    acceptor.close(ignored);
    slot_free.cancel();
  });
}

asio::awaitable<void> Listener::Impl::accept_loop() {
  while (acceptor.is_open()) {
    if (handshakes == kMaxHandshakes) {
      slot_free.expires_at(asio::steady_timer::time_point::max());
      error_code cancelled;
      co_await slot_free.async_wait(asio::redirect_error(use_awaitable, cancelled));
      continue;
    }
    error_code error;
    auto socket = std::make_shared<tcp::socket>(io);
    co_await acceptor.async_accept(*socket, asio::redirect_error(use_awaitable, error));
    if (!acceptor.is_open()) co_return;
    if (error) {
      // Out of descriptors, or the peer was gone already: not a reason to stop, nor to spin.
      spdlog::warn("cannot accept a connection: {}", error.message());
      slot_free.expires_after(std::chrono::milliseconds(100));
      co_await slot_free.async_wait(asio::redirect_error(use_awaitable, error));
      continue;
    }
    ++handshakes;
    asio::co_spawn(io, handshake(std::move(socket)), asio::detached);
  }
}

asio::awaitable<void> Listener::Impl::handshake(std::shared_ptr<tcp::socket> socket) {
  const std::string from = describe_peer(*socket);
  bool done = false;
  try {
    asio::steady_timer deadline(io, options.deadline);
    auto late = std::make_shared<bool>(false);
    // Shared: the timer's handler may run after this coroutine has ended.
    deadline.async_wait([socket, late](error_code error) {
      if (error) return;
      *late = true;
      socket->close(error);
    });
    std::exception_ptr failure;
    try {
      session::SessionKeys keys = co_await respond(*socket, own, accepted, options.ciphers);
      if (!*late) ready(make_link(*socket, std::move(keys), from));
      done = !*late;
    } catch (...) {
      failure = std::current_exception();
    }
    if (!done) reject(from, *late ? "no handshake in time" : describe(failure));
  } catch (const std::exception& error) {
    reject(from, error.what());
  }
  --handshakes;
  slot_free.cancel();
}

// Moves the connection to an I/O thread of its own.
std::unique_ptr<Link> Listener::Impl::make_link(tcp::socket& socket, session::SessionKeys keys,
                                                std::string from) const {
  auto impl = std::make_unique<Link::Impl>(options);
  const auto protocol = socket.local_endpoint().protocol();
  impl->socket.assign(protocol, socket.release());
  impl->peer_address = std::move(from);
  impl->adopt(std::move(keys));
  impl->start();
  return std::unique_ptr<Link>(new Link(std::move(impl)));
}

void Listener::Impl::ready(std::unique_ptr<Link> link) {
  const std::lock_guard lock(mutex);
  if (closed) return;
  if (links.size() == kMaxUnacceptedLinks) {
    spdlog::warn("dropped a link from {}: too many are waiting", link->peer_address());
    return;
  }
  links.push_back(std::move(link));
  arrived.notify_one();
}

void Listener::Impl::reject(const std::string& from, const std::string& why) {
  spdlog::warn("dropped a connection from {}: {}", from, why);
  const std::lock_guard lock(mutex);
  ++rejected;
  arrived.notify_all();
}

Listener::Listener(const Address& address, const session::SecretKey& own,
                   std::vector<session::PublicKey> accepted, const LinkOptions& options)
    : impl_(std::make_unique<Impl>(own, std::move(accepted), options)) {
  impl_->bind(address);
  asio::co_spawn(impl_->io, impl_->accept_loop(), asio::detached);
  impl_->thread = std::thread([this] {
    name_this_thread("listener");
    impl_->io.run();
  });
}

Listener::~Listener() = default;

std::uint16_t Listener::port() const { return impl_->port; }

std::unique_ptr<Link> Listener::accept(std::chrono::nanoseconds timeout) {
  std::unique_lock lock(impl_->mutex);
  impl_->arrived.wait_for(lock, timeout, [this] { return !impl_->links.empty() || impl_->closed; });
  if (impl_->links.empty()) return nullptr;
  std::unique_ptr<Link> link = std::move(impl_->links.front());
  impl_->links.pop_front();
  return link;
}

std::uint64_t Listener::rejected() const {
  const std::lock_guard lock(impl_->mutex);
  return impl_->rejected;
}

void Listener::close() { impl_->close(); }

}  // namespace pollux::protocol
