// What the kinds of arbiters have in common behind Arbiter: a decision that may block.
#pragma once

#include <string>
#include <string_view>
#include <utility>

#include "protocol/types.h"
#include "protocol/verdict.h"

namespace pollux::protocol {

struct Claim {
  VmId vm;
  Term term;
  ReplicaId claimant;
};

struct Decision {
  Verdict verdict = Verdict::kUnreachable;
  std::string reason;  // one line; empty when won

  [[nodiscard]] static Decision won() { return {Verdict::kWon, {}}; }
  [[nodiscard]] static Decision lost(std::string reason) { return {Verdict::kLost, std::move(reason)}; }
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

  [[nodiscard]] virtual Decision decide(const Claim& claim, TimePoint deadline) = 0;
};

// 20 digits, so that texts sort like terms.
[[nodiscard]] std::string term_digits(Term term);

// The rules that both kinds apply to what they have found.
[[nodiscard]] bool can_be_won(Term term);  // 0 is no term, and the last number has no next
[[nodiscard]] Decision lost_to_higher_term(Term higher);
[[nodiscard]] Decision lost_to(const Claim& claim, const std::string& holder);
[[nodiscard]] Decision lost_to_gap(const Claim& claim);

// The beginning of a text of somebody else's, without what does not belong into one line of a log.
[[nodiscard]] std::string quoted(std::string_view text);

// 32 lower-case hexadecimal digits.
[[nodiscard]] bool is_replica_id(const std::string& text);

}  // namespace pollux::protocol
