#include "chaos/replica_end.h"

#include <fmt/format.h>

#include <csignal>
#include <regex>
#include <sstream>

namespace pollux::chaos {
namespace {

constexpr std::size_t kMaxFindings = 8;

// The exit codes of `pollux --help`.
constexpr int kNotNeeded = 0, kFailed = 1, kHandedOver = 5;

// What somebody says whose peer broke the rules. Nothing explains that: a flipped bit never gets past a
// frame's seal.
bool tells_of_a_broken_rule(const std::string& line) {
  static const std::regex kBroken("protocol violation|broke the protocol|malformed message|invariant failed");
  return std::regex_search(line, kBroken);
}

bool tells_of_divergence(const std::string& line) {
  static const std::regex kDiverged("diverged in epoch");
  return std::regex_search(line, kDiverged);
}

// The text of a log line that is an error, or of the last one of a process; empty: it is none.
std::string error_text(const std::string& line) {
  static const std::regex kError(R"(^(?:\d\d:\d\d:\d\d\.\d+ (?:error|critical)|pollux:) (.*)$)");
  std::smatch match;
  return std::regex_match(line, match, kError) ? match[1].str() : std::string();
}

bool is_explained(const std::string& error, const Treatment& treatment) {
  // It lost an arbitration, its primary went on without it, or its full sync was not over when its primary
  // was lost: whoever loses a peer, or is lost, may say so.
  static const std::regex kOrderly(
      "^(?:fenced: |the primary said goodbye: dropped|lost the primary before protection began: )");
  static const std::regex kDisk("disk image .* failed: |cannot write |cannot be read|cannot read ");
  if (std::regex_search(error, kOrderly)) return true;
  if (tells_of_divergence(error)) return treatment.may_diverge;
  if (treatment.disk_harmed && std::regex_search(error, kDisk)) return true;
  return treatment.memory_harmed;  // whatever it was about to do may have failed
}

class EndCheck {
 public:
  EndCheck(const ReplicaEnd& end, const Treatment& treatment) : end_(end), treatment_(treatment) {}

  std::vector<std::string> run() {
    std::istringstream lines(end_.log);
    for (std::string line; std::getline(lines, line);) check_line(line);
    check_code();
    return std::move(findings_);
  }

 private:
  void check_line(const std::string& line) {
    const std::string error = error_text(line);
    if (!error.empty()) says_why_ = true;
    const bool unexplained = tells_of_a_broken_rule(line) ||
                             (tells_of_divergence(line) && !treatment_.may_diverge) ||
                             (!error.empty() && !is_explained(error, treatment_));
    if (unexplained && findings_.size() < kMaxFindings)
      findings_.push_back("nothing that was done to it explains: " + line);
  }

  void check_code() {
    const int code = end_.exit_code;
    const bool good = (end_.killed && code == 128 + SIGKILL) || (code == kFailed && says_why_) ||
                      (code == kHandedOver && treatment_.told_to_hand_over) ||
                      (treatment_.told_to_end && (code == kNotNeeded || code == 128 + SIGTERM));
    if (!good)
      findings_.push_back(
          fmt::format("it ended with code {}{}", code, code == kFailed ? " and did not say why" : ""));
  }

  const ReplicaEnd& end_;
  const Treatment& treatment_;
  bool says_why_ = false;
  std::vector<std::string> findings_;
};

}  // namespace

std::vector<std::string> check_end(const ReplicaEnd& end, const Treatment& treatment) {
  return EndCheck(end, treatment).run();
}

}  // namespace pollux::chaos
