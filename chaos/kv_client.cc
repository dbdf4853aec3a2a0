#include "chaos/kv_client.h"

#include <arpa/inet.h>
#include <fmt/format.h>
#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <cstring>

#include "base/error.h"
#include "tests/guests/lockstep/kv_protocol.h"

namespace pollux::chaos {
namespace {

using guests::KvRequest;
using guests::KvResponse;
using guests::KvStatus;

guests::KvOperation wire_operation(OperationKind kind) {
  switch (kind) {
    case OperationKind::kPut: return guests::KvOperation::kPut;
    case OperationKind::kGet: return guests::KvOperation::kGet;
    case OperationKind::kIncrement: break;
  }
  return guests::KvOperation::kIncrement;
}

KvRequest make_request(const Operation& operation) {
  POLLUX_ASSERT(!operation.key.empty() && operation.key.size() <= guests::kMaxKvKey);
  POLLUX_ASSERT(operation.argument.size() <= guests::kMaxKvValue);
  KvRequest request{};
  request.magic = guests::kKvMagic;
  request.operation = wire_operation(operation.kind);
  request.key_bytes = static_cast<std::uint8_t>(operation.key.size());
  request.value_bytes = static_cast<std::uint16_t>(operation.argument.size());
  request.client = operation.client;
  request.sequence = operation.sequence;
  std::copy(operation.key.begin(), operation.key.end(), request.key);
  std::copy(operation.argument.begin(), operation.argument.end(), request.value);
  return request;
}

Answer to_answer(const KvResponse& response) {
  if (response.value_bytes > guests::kMaxKvValue) throw Error("a response says that its value is longer than any can be");
  const std::string value(reinterpret_cast<const char*>(response.value), response.value_bytes);
  switch (response.status) {
    case KvStatus::kOk: return {Outcome::kOk, value};
    case KvStatus::kMissing: return {Outcome::kMissing, {}};
    case KvStatus::kBad: return {Outcome::kRefused, {}};
    case KvStatus::kFull:
    case KvStatus::kOld: break;
  }
  throw Error(fmt::format("client {} #{}: the server answers with status {}", response.client, response.sequence,
                          static_cast<unsigned>(response.status)));
}

Fd connect_udp(const ServerAddress& server) {
  const std::string name = server.ip + ":" + std::to_string(server.port);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(server.port);
  if (::inet_pton(AF_INET, server.ip.c_str(), &address.sin_addr) != 1) throw UsageError(name + " is no IPv4 address");
  Fd socket(::socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!socket) throw errno_error("make a UDP socket for", name);
  if (::connect(socket.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0) {
    throw errno_error("connect to", name);
  }
  return socket;
}

}  // namespace

KvClient::KvClient(const KvClientOptions& options, const Stopwatch& watch, HistoryRecorder& recorder)
    : options_(options), watch_(watch), recorder_(recorder), socket_(connect_udp(options.server)) {}

std::optional<Answer> KvClient::call(OperationKind kind, const std::string& key, const std::string& argument,
                                     const std::atomic<bool>& stop) {
  Operation operation;
  operation.client = options_.id;
  operation.sequence = ++sequence_;
  operation.kind = kind;
  operation.key = key;
  operation.argument = argument;
  const KvRequest request = make_request(operation);
  operation.invoked = watch_.now();
  const auto number = recorder_.invoked(std::move(operation));
  while (number && !stop) {
    // A network that is down for the moment, or a port nobody listens on, is a lost datagram.
    (void)::send(socket_.get(), &request, sizeof request, MSG_NOSIGNAL);
    auto answer = receive_until(std::chrono::steady_clock::now() + options_.retransmit);
    if (!answer) continue;
    recorder_.answered(*number, watch_.now(), *answer);
    return answer;
  }
  return std::nullopt;
}

std::optional<Answer> KvClient::receive_until(std::chrono::steady_clock::time_point deadline) {
  for (;;) {
    const auto left = std::chrono::ceil<std::chrono::milliseconds>(deadline - std::chrono::steady_clock::now());
    if (left.count() <= 0) return std::nullopt;
    pollfd poll{socket_.get(), POLLIN, 0};
    if (::poll(&poll, 1, static_cast<int>(left.count())) <= 0) continue;
    KvResponse response{};
    const ssize_t size = ::recv(socket_.get(), &response, sizeof response, 0);
    if (size != sizeof response || response.magic != guests::kKvMagic) continue;
    // Responses to earlier requests come late, and twice.
    if (response.client != options_.id || response.sequence != sequence_) continue;
    return to_answer(response);
  }
}

}  // namespace pollux::chaos
