// A client of the kv_server guest (tests/guests/lockstep/kv_protocol.h): one UDP socket, one request under way, repeated
// until it is answered. Writes down what it asked and was told.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <optional>
#include <string>

#include "base/fd.h"
#include "chaos/history.h"
#include "chaos/stopwatch.h"

namespace pollux::chaos {

struct ServerAddress {
  std::string ip = "10.0.0.2";
  std::uint16_t port = 7000;
};

struct KvClientOptions {
  ServerAddress server;
  std::uint64_t id = 1;  // no two clients may have the same, ever: the server knows them by it
  std::chrono::milliseconds retransmit{50};
};

class KvClient {
 public:
  // Throws Error.
  KvClient(const KvClientOptions& options, const Stopwatch& watch, HistoryRecorder& recorder);

  // Asks until it is answered or `stop` is set, which it looks at once in a retransmission time; nothing: stopped, or the
  // recorder is full. Throws Error when the answer is none that a correct server gives.
  std::optional<Answer> call(OperationKind kind, const std::string& key, const std::string& argument,
                             const std::atomic<bool>& stop);

 private:
  [[nodiscard]] std::optional<Answer> receive_until(std::chrono::steady_clock::time_point deadline);

  const KvClientOptions options_;
  const Stopwatch& watch_;
  HistoryRecorder& recorder_;
  Fd socket_;
  std::uint64_t sequence_ = 0;
};

}  // namespace pollux::chaos
