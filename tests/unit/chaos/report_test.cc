#include "chaos/report.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <boost/json.hpp>

#include "tests/support/temporary_folder.h"
#include "tests/unit/chaos/random_history.h"

namespace pollux::chaos {
namespace {

using std::chrono::milliseconds;
using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;

RunRecord small_run() {
  RunRecord run;
  run.seed = 42;
  run.duration = milliseconds(10'000);
  run.kinds = parse_fault_kinds("kill,pause");
  run.command = "pollux chaos run --seed 42";
  run.hosts = {"castor", "pollux"};
  run.ended = milliseconds(12'000);
  run.planned = 2;
  FaultRecord kill;
  kill.fault.at = milliseconds(1000);
  kill.struck = kill.over = milliseconds(1100);
  kill.host = 0;
  kill.protected_again = milliseconds(1500);
  kill.failover = Failover{0, 1, milliseconds(40)};
  run.faults.push_back(kill);
  run.roles.push_back({0, RoleSpan::Role::kProtected, 1, Moment(0), milliseconds(1100)});
  run.roles.push_back({1, RoleSpan::Role::kUnprotected, 2, milliseconds(1140), milliseconds(1500)});
  run.epochs.push_back({milliseconds(500), 0, 17});
  for (int i = 0; i < 3; ++i) {
    Operation operation;
    operation.client = 1;
    operation.key = "x";
    operation.invoked = milliseconds(1000 * i);
    if (i < 2) operation.returned = milliseconds(1000 * i + 10 * (i + 1));
    run.history.push_back(operation);
  }
  return run;
}

TEST(Spread, IsByTheNearestRank) {
  EXPECT_EQ(spread_of({}).count, 0U);
  EXPECT_EQ(spread_of({Moment(7)}).median, Moment(7));
  EXPECT_EQ(spread_of({Moment(7)}).p99, Moment(7));
  std::vector<Moment> hundred;
  for (int i = 100; i >= 1; --i) hundred.emplace_back(i);
  EXPECT_EQ(spread_of(hundred).median, Moment(50));
  EXPECT_EQ(spread_of(hundred).p99, Moment(99));
  EXPECT_EQ(spread_of(hundred).max, Moment(100));
}

TEST(Report, SumsUp) {
  const ReportSummary summary = summarize(small_run());
  EXPECT_EQ(summary.requests, 2U);
  EXPECT_EQ(summary.unanswered, 1U);
  EXPECT_EQ(summary.latency.max, milliseconds(20));
  EXPECT_EQ(summary.failover.median, milliseconds(40));
  EXPECT_EQ(summary.reprotection.median, milliseconds(400));
  EXPECT_EQ(summary.longest_silence, milliseconds(1010));
}

TEST(Report, BucketsAreBoundedAndLoseNoAnswer) {
  const History history = testing::random_history(1, {.operations = 5000, .lose_last_answers = false});
  History slow = history;  // as if over hours
  for (Operation& operation : slow) {
    operation.invoked *= 1'000'000'000;
    operation.returned = *operation.returned * 1'000'000'000;
  }
  Moment end{};
  for (const Operation& operation : slow) end = std::max(end, *operation.returned);
  const auto buckets = latency_buckets(slow, end);
  EXPECT_LE(buckets.size(), kMaxBuckets + 1);
  EXPECT_GT(buckets.size(), 100U);
  std::size_t count = 0;
  for (const LatencyBucket& bucket : buckets) count += bucket.count;
  EXPECT_EQ(count, slow.size());
  EXPECT_THAT(latency_buckets({}, Moment(0)), IsEmpty());
}

TEST(Report, JsonHoldsWhatItSays) {
  RunRecord run = small_run();
  run.violations.push_back({"linearizability", "key x\n  before: </script>"});
  const boost::json::value report = boost::json::parse(to_json(run));
  EXPECT_FALSE(report.at("passed").as_bool());
  EXPECT_EQ(report.at("seed").to_number<int>(), 42);
  EXPECT_EQ(report.at("faults_enabled").as_string(), "kill,pause");
  EXPECT_EQ(report.at("summary").at("failover").at("median_ms").to_number<double>(), 40);
  EXPECT_EQ(report.at("faults").at(0).at("failover").at("to").as_string(), "pollux");
  EXPECT_EQ(report.at("faults").at(0).at("what").as_string(), "kill primary");
  EXPECT_EQ(report.at("faults").at(0).at("number").to_number<int>(), 1);
  EXPECT_THAT(boost::json::serialize(report.at("checked")), AllOf(HasSubstr("journal"), HasSubstr("no crash")));
  EXPECT_EQ(report.at("roles").at(1).at("role").as_string(), "primary, unprotected");
  EXPECT_EQ(report.at("violations").at(0).at("evidence").as_string(), "key x\n  before: </script>");
}

TEST(Report, ThePageNeedsNothingElse) {
  RunRecord run = small_run();
  run.violations.push_back({"disks", "</script><b>"});
  const std::string page = to_html(run);
  for (const char* outside : {"src=", "href=", "@import", "url(", "</script><b>"}) EXPECT_THAT(page, Not(HasSubstr(outside)));
  EXPECT_THAT(page, HasSubstr("\"seed\":42"));
  EXPECT_THAT(page, HasSubstr("\\u003c/script>"));
  std::size_t addresses = 0;
  for (std::size_t at = 0; (at = page.find("://", at)) != std::string::npos; ++at) ++addresses;
  EXPECT_EQ(addresses, 1U);  // the name of SVG's namespace, which is not fetched
}

TEST(Report, TheTerminalIsToldHowToRepeatAFailure) {
  RunRecord run = small_run();
  EXPECT_THAT(to_text(run), Not(HasSubstr("the same again")));
  run.violations.push_back({"disks", "differ"});
  EXPECT_THAT(to_text(run), HasSubstr("the same again  pollux chaos run --seed 42"));
}

TEST(Report, IsWrittenAsTwoFiles) {
  const pollux::testing::TemporaryFolder folder;
  const std::filesystem::path inside = std::filesystem::path(folder.make_file("x", 0)).parent_path();
  write_report(small_run(), inside);
  EXPECT_GT(std::filesystem::file_size(inside / "report.html"), 5000U);
  EXPECT_GT(std::filesystem::file_size(inside / "report.json"), 500U);
}

}  // namespace
}  // namespace pollux::chaos
