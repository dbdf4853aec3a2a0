#include "chaos/history.h"

#include <fmt/format.h>

#include <algorithm>
#include <cctype>

#include "base/error.h"

namespace pollux::chaos {
namespace {

double seconds(Moment moment) { return std::chrono::duration<double>(moment).count(); }

std::string call_text(const Operation& operation) {
  switch (operation.kind) {
    case OperationKind::kPut: return fmt::format("put {} = {}", operation.key, value_text(operation.argument));
    case OperationKind::kGet: return "get " + operation.key;
    case OperationKind::kIncrement: return "increment " + operation.key;
  }
  return {};
}

std::string answer_text(const Operation& operation) {
  switch (operation.answer.outcome) {
    case Outcome::kOk: return operation.kind == OperationKind::kPut ? "done" : value_text(operation.answer.value);
    case Outcome::kMissing: return "missing";
    case Outcome::kRefused: return "refused";
  }
  return {};
}

}  // namespace

std::string encode_number(std::uint64_t number) {
  std::string value(8, '\0');
  for (char& byte : value) {
    byte = static_cast<char>(number & 0xff);
    number >>= 8;
  }
  return value;
}

std::optional<std::uint64_t> decode_number(const std::string& value) {
  if (value.size() != 8) return std::nullopt;
  std::uint64_t number = 0;
  for (auto byte = value.rbegin(); byte != value.rend(); ++byte) number = number << 8 | static_cast<unsigned char>(*byte);
  return number;
}

std::string value_text(const std::string& value) {
  const auto printable = [](char c) { return std::isprint(static_cast<unsigned char>(c)) != 0; };
  if (std::all_of(value.begin(), value.end(), printable)) return '"' + value + '"';
  if (const auto number = decode_number(value)) return std::to_string(*number);
  std::string text = "0x";
  for (const char byte : value) text += fmt::format("{:02x}", static_cast<unsigned char>(byte));
  return text;
}

std::string to_text(const Operation& operation) {
  const std::string who = fmt::format("client {} #{} {}", operation.client, operation.sequence, call_text(operation));
  if (!operation.returned) return fmt::format("{}, from {:.6f} s, never answered", who, seconds(operation.invoked));
  return fmt::format("{} -> {}, from {:.6f} s to {:.6f} s", who, answer_text(operation), seconds(operation.invoked),
                     seconds(*operation.returned));
}

std::optional<std::size_t> HistoryRecorder::invoked(Operation operation) {
  const std::lock_guard lock(mutex_);
  if (operations_.size() == kMaxOperations) return std::nullopt;
  operations_.push_back(std::move(operation));
  return operations_.size() - 1;
}

void HistoryRecorder::answered(std::size_t number, Moment returned, Answer answer) {
  const std::lock_guard lock(mutex_);
  Operation& operation = operations_.at(number);
  POLLUX_ASSERT(!operation.returned && returned >= operation.invoked);
  operation.returned = returned;
  operation.answer = std::move(answer);
  ++answered_;
}

std::size_t HistoryRecorder::answered_count() const {
  const std::lock_guard lock(mutex_);
  return answered_;
}

History HistoryRecorder::copy() const {
  const std::lock_guard lock(mutex_);
  return operations_;
}

}  // namespace pollux::chaos
