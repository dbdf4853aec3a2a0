#include "protocol/arbiter/decider.h"

#include <fmt/format.h>

#include <algorithm>
#include <limits>

namespace pollux::protocol {

std::string term_digits(Term term) { return fmt::format("{:020}", term.value); }

bool can_be_won(Term term) {
  return term.value != 0 && term.value != std::numeric_limits<std::uint64_t>::max();
}

Decision lost_to_higher_term(Term higher) {
  return Decision::lost(fmt::format("term {} has been won already", higher.value));
}

Decision lost_to(const Claim& claim, const std::string& holder) {
  return Decision::lost(fmt::format("term {} was won by replica {}", claim.term.value, holder));
}

Decision lost_to_gap(const Claim& claim) {
  return Decision::lost(fmt::format("nobody has won term {}, so term {} cannot be won", claim.term.value - 1,
                                    claim.term.value));
}

std::string quoted(std::string_view text) {
  constexpr std::size_t kMaxBytes = 200;
  std::string line(text.substr(0, kMaxBytes));
  std::replace_if(
      line.begin(), line.end(), [](char c) { return c < ' ' || c > '~'; }, '?');
  return line;
}

bool is_replica_id(const std::string& text) {
  return text.size() == 2 * sizeof(ReplicaId) && std::all_of(text.begin(), text.end(), [](char c) {
           return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f');
         });
}

}  // namespace pollux::protocol
