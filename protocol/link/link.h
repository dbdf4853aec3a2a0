// An authenticated, encrypted, ordered connection between two replicas over TCP.
//
// Each link has one I/O thread. send() encodes and encrypts on the caller's thread, straight from the caller's memory into a
// send buffer: encryption is the slowest step of all (about 1.4 GB/s with AES-256-GCM), so it runs beside the I/O thread's
// copying into the socket, and the body belongs to the caller again when send() returns. Short messages go into the socket at
// once if they can, and wake nobody; those that are said to be followed by more go with these in one call. Receiving, the I/O
// thread decrypts each body into one contiguous buffer that is moved, never copied, to the receiver, whom it wakes once for
// messages that came together. Both queues are bounded in bytes: a slow network blocks send(), a slow receiver stops reading,
// and TCP carries that to the peer.
//
// Not a byte of the peer is parsed before it is authenticated (session/). What the messages mean is not known
// here.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/bytes.h"
#include "base/error.h"
#include "protocol/message.h"
#include "protocol/session/handshake.h"
#include "protocol/session/keys.h"
#include "protocol/types.h"

namespace pollux::protocol {

// The peer cannot be reached, or is not who it should be.
class LinkError : public Error {
 public:
  using Error::Error;
};

// "host:port" or "[v6]:port". A host may be a name; it is resolved when used.
struct Address {
  std::string host;
  std::uint16_t port = 0;
};
[[nodiscard]] Address parse_address(const std::string& text);  // throws UsageError
[[nodiscard]] std::string to_string(const Address& address);

struct LinkOptions {
  // Resolving, connecting and the handshake together (a name server that hangs may take longer); for a
  // listener, the handshake of one peer.
  std::chrono::milliseconds deadline = std::chrono::seconds(10);
  std::size_t send_queue_bytes = 8 << 20;     // sealed bytes waiting for the socket
  std::size_t receive_queue_bytes = 8 << 20;  // headers and bodies waiting for receive()
  // A send() that waits for room gives the link up when for so long no byte went out and none came in:
  // whoever sends cannot notice the peer's silence meanwhile.
  std::chrono::milliseconds stall_timeout = std::chrono::seconds(10);
  session::CipherSet ciphers = session::available_ciphers();
};

// Whether the same thread sends another message, or calls flush(), right after this one: without that, a message sent with kYes
// may lie in the queue for ever.
enum class More { kNo, kYes };

struct Received {
  Message message;
  Bytes body;  // body_length(message) bytes
};

// send() may be called by several threads (messages keep each thread's order); receive() by one at a time.
class Link {
 public:
  // Throws LinkError naming the address; returns when both sides have confirmed the keys.
  [[nodiscard]] static std::unique_ptr<Link> connect(const Address& address, const session::SecretKey& own,
                                                     const session::PublicKey& peer,
                                                     const LinkOptions& options = {});
  ~Link();  // close(), without waiting for what is queued
  Link(const Link&) = delete;
  Link& operator=(const Link&) = delete;

  // Blocks while the send queue is full. False: the link is down, the message is lost. The pieces of the body
  // must add up to body_length(message). Guest pages may change while they are sent: what arrives is then
  // some mixture.
  bool send(const Message& message, std::span<const ByteView> body, More more = More::kNo);
  bool send(const Message& message, ByteView body = {}, More more = More::kNo);

  // The next message in order; none: the time is over, or the link is down and everything was received.
  [[nodiscard]] std::optional<Received> receive(std::chrono::nanoseconds timeout);

  // False from the first failure, the peer's close or close() on. Messages received before can still be
  // taken.
  [[nodiscard]] bool is_up() const;
  // Why it is down, one line; empty while up.
  [[nodiscard]] std::string down_reason() const;

  // What all messages sent so far take on the wire: sealed frames, with prefixes, headers and tags; without the handshake and
  // what TCP adds.
  [[nodiscard]] std::uint64_t sent_bytes() const;
  // When bytes of the peer arrived last, authenticated or not yet whole.
  [[nodiscard]] TimePoint last_received() const;
  [[nodiscard]] const session::PublicKey& peer() const;
  [[nodiscard]] const std::string& peer_address() const;
  [[nodiscard]] session::Cipher cipher() const;

  // Called on the link's thread whenever messages became receivable and when the link went down; called once
  // by this function itself (on the caller's thread) if either is so already. One thread can thus wait for
  // several links. The callback must not block, nor call this link.
  void set_activity_callback(std::function<void()> callback);

  // Waits until everything sent has been given to the kernel. False: timeout, or the link is down.
  bool flush(std::chrono::nanoseconds timeout);
  // Closes now; a blocked send() returns false. Harmless when down.
  void close();

 private:
  friend class Listener;
  struct Impl;
  explicit Link(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

// Accepts links from peers whose keys are pinned. Each connection gets one handshake within the deadline; one
// that fails is dropped with one log line, and listening goes on.
class Listener {
 public:
  // Port 0 picks a free one. `own` must outlive the listener. Throws UsageError when the address cannot be
  // bound.
  Listener(const Address& address, const session::SecretKey& own, std::vector<session::PublicKey> accepted,
           const LinkOptions& options = {});
  ~Listener();
  Listener(const Listener&) = delete;
  Listener& operator=(const Listener&) = delete;

  [[nodiscard]] std::uint16_t port() const;
  // The next authenticated link; null: the time is over, or close() was called.
  [[nodiscard]] std::unique_ptr<Link> accept(std::chrono::nanoseconds timeout);
  // Connections dropped before they became links.
  [[nodiscard]] std::uint64_t rejected() const;
  void close();

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace pollux::protocol
