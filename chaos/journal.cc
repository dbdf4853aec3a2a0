#include "chaos/journal.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <map>
#include <optional>
#include <utility>

#include "tests/guests/lockstep/kv_protocol.h"

namespace pollux::chaos {
namespace {

using guests::KvJournalRecord;
using guests::KvOperation;

constexpr std::size_t kMaxFindings = 16;

// None: it is no record, or not one of that sector.
std::optional<KvJournalRecord> record_in(const std::string& image, std::size_t sector) {
  KvJournalRecord record{};
  std::memcpy(&record, image.data() + sector * sizeof record, sizeof record);
  const std::size_t sectors = image.size() / sizeof record;
  const auto hash = guests::kv_hash(reinterpret_cast<const std::uint8_t*>(&record), offsetof(KvJournalRecord, hash));
  const bool is_record = record.magic == guests::kKvJournalMagic && record.hash == hash && record.number > 0 &&
                         (record.number - 1) % sectors == sector && record.key_bytes <= guests::kMaxKvKey &&
                         record.value_bytes <= guests::kMaxKvValue;
  return is_record ? std::optional(record) : std::nullopt;
}

class JournalCheck {
 public:
  JournalCheck(const std::string& image, bool crashed) : sectors_(image.size() / sizeof(KvJournalRecord)), crashed_(crashed) {
    for (std::size_t sector = 0; sector < sectors_; ++sector) {
      if (const auto record = record_in(image, sector)) records_.emplace(record->number, *record);
    }
  }

  std::vector<std::string> run(const History& history) {
    check_numbers();
    index();
    for (const Operation& operation : history) {
      if (operation.writes() && operation.returned && operation.answer.outcome == Outcome::kOk) check(operation);
    }
    return std::move(findings_);
  }

 private:
  using Request = std::pair<std::uint64_t, std::uint64_t>;  // client, sequence

  void find(std::string what) {
    if (findings_.size() < kMaxFindings) findings_.push_back(std::move(what));
  }

  // Up to the last one, as many as the disk has room for.
  void check_numbers() {
    if (records_.empty()) return;
    const std::uint64_t last = records_.rbegin()->first;
    wrapped_ = last > sectors_;
    const std::uint64_t flushed = crashed_ ? last - std::min<std::uint64_t>(last, guests::kMaxKvBatch) : last;
    for (std::uint64_t number = wrapped_ ? last - sectors_ + 1 : 1; number <= flushed; ++number) {
      if (!records_.contains(number)) find(fmt::format("record {} of {} is missing or damaged", number, last));
    }
  }

  void index() {
    for (const auto& [number, record] : records_) {
      const Request request{record.client, record.sequence};
      const auto [at, fresh] = by_request_.emplace(request, &record);
      if (!fresh) {
        find(fmt::format("client {} #{} is in records {} and {}", record.client, record.sequence, at->second->number, number));
      }
    }
  }

  void check(const Operation& operation) {
    const auto found = by_request_.find({operation.client, operation.sequence});
    if (found == by_request_.end()) {
      if (!wrapped_ || kept_since(operation.client) < operation.sequence) find("not in the journal: " + to_text(operation));
      return;
    }
    const KvJournalRecord& record = *found->second;
    const std::string key(reinterpret_cast<const char*>(record.key), record.key_bytes);
    const std::string value(reinterpret_cast<const char*>(record.value), record.value_bytes);
    const bool put = operation.kind == OperationKind::kPut;
    const bool same = key == operation.key && record.operation == (put ? KvOperation::kPut : KvOperation::kIncrement) &&
                      value == (put ? operation.argument : operation.answer.value);
    if (!same) find(fmt::format("record {} says {} = {}: {}", record.number, key, value_text(value), to_text(operation)));
  }

  // The first of a client's requests that is still there: a client's later ones are in later records.
  [[nodiscard]] std::uint64_t kept_since(std::uint64_t client) const {
    const auto at = by_request_.lower_bound({client, 0});
    return at != by_request_.end() && at->first.first == client ? at->first.second : ~std::uint64_t{0};
  }

  const std::size_t sectors_;
  const bool crashed_;
  std::map<std::uint64_t, KvJournalRecord> records_;  // by number
  std::map<Request, const KvJournalRecord*> by_request_;
  bool wrapped_ = false;
  std::vector<std::string> findings_;
};

}  // namespace

std::vector<std::string> check_journal(const History& history, const std::string& image, bool crashed) {
  return JournalCheck(image, crashed).run(history);
}

}  // namespace pollux::chaos
