// What clients of the key-value server asked and were told, and when: the evidence that the checkers judge.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

namespace pollux::chaos {

// Since the campaign's start, on one monotonic clock for all clients.
using Moment = std::chrono::nanoseconds;

enum class OperationKind : std::uint8_t { kPut, kGet, kIncrement };

enum class Outcome : std::uint8_t {
  kOk,
  kMissing,  // no such key
  kRefused,  // an increment of what is no number
};

struct Answer {
  Outcome outcome = Outcome::kOk;
  std::string value;  // of a get or an increment that was carried out
  bool operator==(const Answer&) const = default;
};

struct Operation {
  std::uint64_t client = 0;
  std::uint64_t sequence = 0;  // the client's own numbering
  OperationKind kind = OperationKind::kGet;
  std::string key;
  std::string argument;  // of a put
  Moment invoked{};
  // Empty: never answered. It may have been carried out at any time since, or not at all.
  std::optional<Moment> returned;
  Answer answer;

  [[nodiscard]] bool writes() const { return kind != OperationKind::kGet; }
};

using History = std::vector<Operation>;

// A counter as the server stores it: 8 bytes, little endian.
[[nodiscard]] std::string encode_number(std::uint64_t number);
// Nothing: it is no number.
[[nodiscard]] std::optional<std::uint64_t> decode_number(const std::string& value);

// "client 3 #17 increment x -> 5, from 1.250000 s to 1.251200 s". A value that is no text is shown in hexadecimal.
[[nodiscard]] std::string to_text(const Operation& operation);
[[nodiscard]] std::string value_text(const std::string& value);

// Collects the operations of several clients. Thread safe.
class HistoryRecorder {
 public:
  // A campaign that asks for more ends its workload; the history of so many is still checked in seconds.
  static constexpr std::size_t kMaxOperations = 2'000'000;

  // Returns the operation's number, for answered(); nothing when the history is full.
  [[nodiscard]] std::optional<std::size_t> invoked(Operation operation);
  void answered(std::size_t number, Moment returned, Answer answer);
  [[nodiscard]] std::size_t answered_count() const;
  [[nodiscard]] History copy() const;

 private:
  mutable std::mutex mutex_;
  History operations_;
  std::size_t answered_ = 0;
};

}  // namespace pollux::chaos
