// What the kinds of arbiters have in common behind Arbiter: a decision that may block.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "protocol/claim.h"

namespace pollux::protocol {

struct Decision {
  Verdict verdict = Verdict::kUnreachable;
  std::string reason;  // one line; empty when won

  [[nodiscard]] static Decision won() { return {Verdict::kWon, {}}; }
  [[nodiscard]] static Decision lost(std::string reason) { return {Verdict::kLost, std::move(reason)}; }
  [[nodiscard]] static Decision member(std::string reason) { return {Verdict::kMember, std::move(reason)}; }
  [[nodiscard]] static Decision unreachable(std::string reason) {
    return {Verdict::kUnreachable, std::move(reason)};
  }
};

// Keeps the promises of Arbiter but one: it may block for as long as the storage or the network likes, also
// beyond `deadline`. Called by several threads at once. A thrown Error means kUnreachable.
class Decider {
 public:
  Decider() = default;
  Decider(const Decider&) = delete;
  Decider& operator=(const Decider&) = delete;
  virtual ~Decider() = default;

  [[nodiscard]] virtual Decision decide(const TermClaim& claim, TimePoint deadline) = 0;
};

// 20 digits, so that texts sort like terms.
[[nodiscard]] std::string term_digits(Term term);

// The rules that both kinds apply to what they have found.
[[nodiscard]] bool can_be_won(Term term);  // 0 is no term, and the last number has no next
[[nodiscard]] Decision lost_to_higher_term(Term higher);
[[nodiscard]] Decision lost_to_gap(const TermClaim& claim);

// The beginning of a text of somebody else's, without what does not belong into one line of a log.
[[nodiscard]] std::string quoted(std::string_view text);

// What is kept of the claim that won a term: the claimant, then the members, each as 32 hexadecimal digits, one space between.
struct ClaimRecord {
  std::string holder;
  std::vector<std::string> members;
};
inline constexpr std::size_t kMaxRecordBytes = (1 + kMaxMembers) * (2 * sizeof(ReplicaId) + 1);
[[nodiscard]] std::string record_of(const TermClaim& claim);
[[nodiscard]] std::optional<ClaimRecord> parse_record(std::string_view text);  // nothing: it names no replica
// What the machine's last term, won by `record`, says to a claim of that term or an earlier one.
[[nodiscard]] Decision judge(const TermClaim& claim, Term last, const ClaimRecord& record);

}  // namespace pollux::protocol
