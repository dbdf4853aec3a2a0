#include "protocol/arbiter/decider.h"

#include <fmt/format.h>

#include <algorithm>
#include <iterator>
#include <limits>

namespace pollux::protocol {

std::string term_digits(Term term) { return fmt::format("{:020}", term.value); }

bool can_be_won(Term term) {
  return term.value != 0 && term.value != std::numeric_limits<std::uint64_t>::max();
}

Decision lost_to_higher_term(Term higher) {
  return Decision::lost(fmt::format("term {} has been won already", higher.value));
}

Decision lost_to_gap(const TermClaim& claim) {
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

namespace {

bool is_replica_id(std::string_view text) {
  return text.size() == 2 * sizeof(ReplicaId) && std::all_of(text.begin(), text.end(), [](char c) {
           return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f');
         });
}

}  // namespace

std::string record_of(const TermClaim& claim) {
  std::string text = to_string(claim.claimant);
  for (const ReplicaId& member : claim.members) text += " " + to_string(member);
  return text;
}

std::optional<ClaimRecord> parse_record(std::string_view text) {
  std::vector<std::string> ids;
  for (bool more = true; more;) {
    const std::size_t end = text.find(' ');
    ids.emplace_back(text.substr(0, end));
    if (!is_replica_id(ids.back()) || ids.size() > 1 + kMaxMembers) return std::nullopt;
    more = end != std::string_view::npos;
    if (more) text.remove_prefix(end + 1);
  }
  ClaimRecord record{std::move(ids.front()), {}};
  record.members.assign(std::make_move_iterator(ids.begin() + 1), std::make_move_iterator(ids.end()));
  return record;
}

Decision judge(const TermClaim& claim, Term last, const ClaimRecord& record) {
  const std::string claimant = to_string(claim.claimant);
  if (last == claim.term && record.holder == claimant) return Decision::won();
  if (std::ranges::find(record.members, claimant) != record.members.end()) {
    return Decision::member(fmt::format("term {} was won by replica {}, which goes on with this one", last.value, record.holder));
  }
  if (last > claim.term) return lost_to_higher_term(last);
  return Decision::lost(fmt::format("term {} was won by replica {}", last.value, record.holder));
}

}  // namespace pollux::protocol
