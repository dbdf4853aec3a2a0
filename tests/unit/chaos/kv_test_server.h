// The kv_server guest's part, played over loopback by a thread that loses and repeats datagrams, and that a test can let
// lie.
#pragma once

#include <arpa/inet.h>
#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <map>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "base/error.h"
#include "base/fd.h"
#include "chaos/kv_client.h"
#include "chaos/kv_model.h"
#include "tests/guests/lockstep/kv_protocol.h"

namespace pollux::chaos::testing {

class KvTestServer {
 public:
  enum class Lie { kNone, kForgetKeys, kCarryOutRepeats, kStaleReads, kStatusFull };

  explicit KvTestServer(Lie lie = Lie::kNone) : lie_(lie), socket_(::socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0)) {
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (::bind(socket_.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0) throw errno_error("bind", "a test server");
    socklen_t size = sizeof address;
    ::getsockname(socket_.get(), reinterpret_cast<sockaddr*>(&address), &size);
    port_ = ntohs(address.sin_port);
    thread_ = std::thread([this] { run(); });
  }
  ~KvTestServer() {
    signal_eventfd(stop_);
    thread_.join();
  }
  [[nodiscard]] ServerAddress address() const { return {"127.0.0.1", port_}; }
  std::atomic<bool> silent = false;

 private:
  void run() {
    for (;;) {
      pollfd polls[2] = {{socket_.get(), POLLIN, 0}, {stop_.get(), POLLIN, 0}};
      ::poll(polls, 2, -1);
      if (polls[1].revents != 0) return;
      guests::KvRequest request{};
      sockaddr_in from{};
      socklen_t size = sizeof from;
      const ssize_t got = ::recvfrom(socket_.get(), &request, sizeof request, 0, reinterpret_cast<sockaddr*>(&from), &size);
      if (got != sizeof request || silent || random_() % 4 == 0) continue;  // lost on its way here
      const guests::KvResponse response = respond(request);
      const auto copies = random_() % 4;  // 0: lost on its way back
      for (std::uint64_t i = 0; i < std::min<std::uint64_t>(copies, 2); ++i) {
        ::sendto(socket_.get(), &response, sizeof response, 0, reinterpret_cast<const sockaddr*>(&from), size);
      }
    }
  }

  guests::KvResponse respond(const guests::KvRequest& request) {
    guests::KvResponse& last = last_[request.client];
    if (request.sequence == last.sequence && lie_ != Lie::kCarryOutRepeats) return last;
    guests::KvResponse response{};
    response.magic = guests::kKvMagic;
    response.client = request.client;
    response.sequence = request.sequence;
    if (request.sequence < last.sequence) {
      response.status = guests::KvStatus::kOld;
      return response;
    }
    Operation operation;
    operation.key.assign(reinterpret_cast<const char*>(request.key), request.key_bytes);
    operation.argument.assign(reinterpret_cast<const char*>(request.value), request.value_bytes);
    operation.kind = request.operation == guests::KvOperation::kPut   ? OperationKind::kPut
                     : request.operation == guests::KvOperation::kGet ? OperationKind::kGet
                                                                      : OperationKind::kIncrement;
    if (lie_ == Lie::kForgetKeys && ++requests_ % 100 == 0) keys_.clear();
    const bool stale = lie_ == Lie::kStaleReads && operation.kind == OperationKind::kGet && ++requests_ % 20 == 0;
    const KeyState before = keys_[operation.key];
    Step step = carry_out(stale ? old_[operation.key] : before, operation);
    if (!stale) keys_[operation.key] = step.state;
    if (operation.writes() && requests_ % 10 == 0) old_[operation.key] = before;
    response.status = lie_ == Lie::kStatusFull                ? guests::KvStatus::kFull
                      : step.answer.outcome == Outcome::kOk   ? guests::KvStatus::kOk
                      : step.answer.outcome == Outcome::kMissing ? guests::KvStatus::kMissing
                                                              : guests::KvStatus::kBad;
    response.value_bytes = static_cast<std::uint16_t>(step.answer.value.size());
    std::copy(step.answer.value.begin(), step.answer.value.end(), response.value);
    last = response;
    return response;
  }

  const Lie lie_;
  Fd socket_;
  Fd stop_ = make_eventfd();
  std::uint16_t port_ = 0;
  std::mt19937_64 random_{1};
  std::map<std::string, KeyState> keys_;
  std::map<std::string, KeyState> old_;
  std::map<std::uint64_t, guests::KvResponse> last_;
  std::uint64_t requests_ = 0;
  std::thread thread_;
};

}  // namespace pollux::chaos::testing
