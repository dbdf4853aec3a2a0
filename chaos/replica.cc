#include "chaos/replica.h"

#include <boost/json.hpp>
#include <fstream>
#include <regex>
#include <sstream>

#include "base/error.h"
#include "control/client.h"

namespace pollux::chaos {
namespace {

// How often it is asked while its control socket is not there yet, or gone for the moment.
constexpr std::chrono::milliseconds kAskAgain{20};

std::string text_of(const boost::json::object& object, const char* key) {
  const auto* value = object.if_contains(key);
  return value != nullptr && value->is_string() ? std::string(value->get_string()) : std::string();
}

std::uint64_t number_of(const boost::json::object& object, const char* key) {
  const auto* value = object.if_contains(key);
  return value != nullptr && value->is_number() ? value->to_number<std::uint64_t>() : 0;
}

}  // namespace

ReplicaStatus parse_replica_status(const std::string& json) {
  boost::json::error_code error;
  const boost::json::value value = boost::json::parse(json, error);
  if (error || !value.is_object()) throw Error("a replica's status is no JSON object");
  const boost::json::object& object = value.get_object();
  return {.role = text_of(object, "role"),
          .state = text_of(object, "state"),
          .protection = text_of(object, "protection"),
          .term = number_of(object, "term"),
          .epoch = number_of(object, "epoch"),
          .committed = number_of(object, "committed")};
}

ReplicaProcess::ReplicaProcess(const std::vector<std::string>& words, const std::string& log_path,
                               const std::string& control_path, std::function<void(const ReplicaStatus&)> told)
    : log_path_(log_path),
      control_path_(control_path),
      told_(std::move(told)),
      process_(words, log_path),
      watcher_([this] { watch(); }) {}

ReplicaProcess::~ReplicaProcess() {
  ended_ = true;
  process_.kill_and_wait();  // which ends the watcher's connection
  watcher_.join();
}

void ReplicaProcess::watch() {
  control::Request request;
  request.command = control::Command::kStatus;
  request.watch = true;
  while (!ended_) {
    try {
      control::ask(control_path_, request, [&](const std::string& line) {
        const control::Answer answer = control::parse_answer(line);
        if (!answer.ok) return false;
        const ReplicaStatus status = parse_replica_status(answer.value);
        {
          const std::lock_guard lock(mutex_);
          status_ = status;
          status_time_ = std::chrono::steady_clock::now();
        }
        told_(status);
        return !ended_;
      });
    } catch (const Error&) {
      // Not there yet, or between two roles, or gone; the campaign notices the last itself.
    }
    if (!ended_) std::this_thread::sleep_for(kAskAgain);
  }
}

ReplicaStatus ReplicaProcess::status() const {
  const std::lock_guard lock(mutex_);
  return status_;
}

std::chrono::steady_clock::time_point ReplicaProcess::status_time() const {
  const std::lock_guard lock(mutex_);
  return status_time_;
}

std::string ReplicaProcess::log() const {
  std::ifstream file(log_path_);
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

std::vector<std::uint64_t> ReplicaProcess::terms() const { return terms_in_log(log()); }

std::vector<std::uint64_t> terms_in_log(const std::string& log) {
  static const std::regex kWon(R"(arbiter .*: term (\d+) is this replica's)");
  std::vector<std::uint64_t> terms;
  for (auto match = std::sregex_iterator(log.begin(), log.end(), kWon); match != std::sregex_iterator(); ++match) {
    const std::uint64_t term = std::stoull((*match)[1]);
    if (terms.empty() || terms.back() != term) terms.push_back(term);
  }
  return terms;
}

}  // namespace pollux::chaos
