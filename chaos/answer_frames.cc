#include "chaos/answer_frames.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <optional>
#include <utility>

namespace pollux::chaos {
namespace {

constexpr std::size_t kMaxFindings = 16;

class AnswerCheck {
 public:
  explicit AnswerCheck(const std::vector<Incarnation>& incarnations) : incarnations_(incarnations) {}

  void check_claims() {
    std::map<std::pair<std::size_t, std::uint64_t>, std::size_t> winners;  // by machine and term
    for (std::size_t i = 0; i < incarnations_.size(); ++i) {
      for (const std::uint64_t term : incarnations_[i].terms) {
        const auto [entry, first] = winners.try_emplace({incarnations_[i].machine, term}, i);
        if (!first) add(fmt::format("term {} was won by {} and by {}", term, name(entry->second), name(i)));
      }
    }
  }

  void take(const AnswerFrame& frame) {
    const auto from = incarnation_of(frame);
    // A read that is asked again of a guest that was booted anew may be answered otherwise. Of writes its journal knows, and
    // linearizability is checked across the boot.
    if (from && current_ && incarnations_[*from].machine > incarnations_[*current_].machine) told_.clear();
    check_content(frame);
    if (!from) return add(fmt::format("an answer at {} left the TAP of host {} before anything ran there", text(frame.at), frame.host));
    if (from == current_) return;
    const Incarnation& now = incarnations_[*from];
    if (now.terms.empty()) return add(fmt::format("{} answered at {} and never won a term", name(*from), text(frame.at)));
    if (current_ && now.machine < incarnations_[*current_].machine) {
      return add(fmt::format("{} answered client {} #{} at {}, after {} had booted the guest anew", name(*from), frame.client,
                             frame.sequence, text(frame.at), name(*current_)));
    }
    const bool same_machine = current_ && now.machine == incarnations_[*current_].machine;
    if (same_machine && now.terms.front() <= incarnations_[*current_].terms.back()) {
      return add(fmt::format("{}, which won term {}, answered client {} #{} at {}, after {} had answered in a term from {} on",
                             name(*from), now.terms.front(), frame.client, frame.sequence, text(frame.at), name(*current_),
                             incarnations_[*current_].terms.front()));
    }
    current_ = from;
  }

  std::vector<std::string> findings() && { return std::move(findings_); }

 private:
  static std::string text(Moment at) { return fmt::format("{:.6f} s", std::chrono::duration<double>(at).count()); }
  [[nodiscard]] const std::string& name(std::size_t incarnation) const { return incarnations_[incarnation].name; }

  [[nodiscard]] std::optional<std::size_t> incarnation_of(const AnswerFrame& frame) const {
    std::optional<std::size_t> found;
    for (std::size_t i = 0; i < incarnations_.size(); ++i) {
      if (incarnations_[i].host == frame.host && incarnations_[i].started <= frame.at) found = i;
    }
    return found;
  }

  // What a client was told once is not told otherwise later.
  void check_content(const AnswerFrame& frame) {
    if (frame.old_request) return;
    const auto [entry, first] = told_.try_emplace({frame.client, frame.sequence}, frame.digest);
    if (!first && entry->second != frame.digest) {
      add(fmt::format("client {} #{} was answered twice, and differently, the second time at {} from host {}", frame.client,
                      frame.sequence, text(frame.at), frame.host));
    }
  }

  void add(std::string finding) {
    if (findings_.size() < kMaxFindings) findings_.push_back(std::move(finding));
  }

  const std::vector<Incarnation>& incarnations_;
  std::optional<std::size_t> current_;
  std::map<std::pair<std::uint64_t, std::uint64_t>, std::uint64_t> told_;
  std::vector<std::string> findings_;
};

}  // namespace

std::vector<std::string> check_answer_frames(const std::vector<AnswerFrame>& frames,
                                             const std::vector<Incarnation>& incarnations) {
  AnswerCheck check(incarnations);
  check.check_claims();
  for (const AnswerFrame& frame : frames) check.take(frame);
  return std::move(check).findings();
}

}  // namespace pollux::chaos
