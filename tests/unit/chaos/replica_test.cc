#include "chaos/replica.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <csignal>
#include <filesystem>
#include <fstream>

#include "base/error.h"
#include "chaos/claims.h"
#include "chaos/role_tracker.h"
#include "tests/support/temporary_folder.h"

namespace pollux::chaos {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;
using ::testing::SizeIs;
using Role = RoleSpan::Role;

TEST(ReplicaLog, TellsTheTermsThatWereWon) {
  EXPECT_THAT(terms_in_log("12:00:00.000 info arbiter file:/a b/c: term 1 is this replica's\n"
                           "12:00:01.000 warning arbiter file:/x: term 2 belongs to another\n"
                           "12:00:02.000 info arbiter etcd:http://h:1: term 13 is this replica's\n"
                           "12:00:02.000 info arbiter etcd:http://h:1: term 13 is this replica's\n"),
              ElementsAre(1, 13));
  EXPECT_THAT(terms_in_log(""), IsEmpty());
}

TEST(ReplicaStatus, IsReadFromJson) {
  const ReplicaStatus status =
      parse_replica_status(R"({"role":"primary","state":"leading","term":3,"epoch":17,"committed":16,"protection":"protected"})");
  EXPECT_EQ(status, (ReplicaStatus{"primary", "leading", "protected", 3, 17, 16}));
  EXPECT_TRUE(status.is_protected());
  EXPECT_EQ(parse_replica_status("{}").role, "");
  EXPECT_THROW((void)parse_replica_status("none"), Error);
}

TEST(ChildProcess, TellsHowItEnded) {
  const pollux::testing::TemporaryFolder folder;
  const std::string log = folder.make_file("log", 0);
  ChildProcess killed({"/bin/sleep", "1000"}, log);
  EXPECT_FALSE(killed.exit_code());
  EXPECT_EQ(killed.kill_and_wait(), 128 + 9);
  EXPECT_EQ(killed.exit_code(), 128 + 9);
  ChildProcess nothing({"/does/not/exist"}, log);
  std::optional<int> code;
  while (!(code = nothing.exit_code())) {
  }
  EXPECT_EQ(*code, 127);
}

// A campaign that counts claims after a stop must not be overtaken by a claim that was on its way.
TEST(ChildProcess, StandsStillWhenItWasStopped) {
  const pollux::testing::TemporaryFolder folder;
  const std::string output = folder.path_of("output");
  ChildProcess writer({"/bin/dd", "if=/dev/zero", "bs=4k", "oflag=sync", "of=" + output}, folder.path_of("log"));
  for (int round = 0; round < 20; ++round) {
    while (!std::filesystem::exists(output) || std::filesystem::file_size(output) == 0) {
    }
    ASSERT_TRUE(writer.stop());
    std::ifstream stat("/proc/" + std::to_string(writer.pid()) + "/stat");
    std::string pid, name, state;
    stat >> pid >> name >> state;
    EXPECT_EQ(state, "T");
    writer.send_signal(SIGCONT);
  }
  (void)writer.kill_and_wait();
  EXPECT_FALSE(writer.stop());
}

TEST(ChildProcess, ThatHasEndedIsNotStopped) {
  const pollux::testing::TemporaryFolder folder;
  ChildProcess over({"/bin/false"}, folder.path_of("log"));
  while (over.stop()) over.send_signal(SIGCONT);  // it may be stopped before it ends
  EXPECT_EQ(over.exit_code(), 1);
}

TEST(Claims, AreCountedWithoutWhatIsOnlyAsked) {
  const pollux::testing::TemporaryFolder folder;
  const std::string directory = std::filesystem::path(folder.path_of("x")).parent_path();
  EXPECT_EQ(count_claims(directory), 0U);
  (void)folder.make_file("5f0c.00000000000000000001", 33);
  (void)folder.make_file("5f0c.00000000000000000002", 33);
  (void)folder.make_file(".candidate.8c1d", 33);
  EXPECT_EQ(count_claims(directory), 2U);
  EXPECT_THROW((void)count_claims(folder.path_of("none")), Error);
}

TEST(RoleTracker, JoinsWhatDoesNotChange) {
  RoleTracker tracker(2);
  tracker.note(0, Role::kStarting, 0, Moment(10));
  tracker.note(0, {"primary", "leading", "unprotected", 1, 0, 0}, Moment(20));
  tracker.note(0, {"primary", "leading", "unprotected", 1, 5, 4}, Moment(30));
  tracker.note(0, {"primary", "leading", "protected", 1, 6, 5}, Moment(40));
  const auto spans = tracker.spans(Moment(100));
  ASSERT_THAT(spans, SizeIs(5));  // down, starting, unprotected; protected; the other host: down
  EXPECT_EQ(spans[2].role, Role::kUnprotected);
  EXPECT_EQ(spans[2].from, Moment(20));
  EXPECT_EQ(spans[2].to, Moment(40));
  EXPECT_EQ(spans[3].to, Moment(100));
  EXPECT_THAT(tracker.samples(), SizeIs(3));
}

}  // namespace
}  // namespace pollux::chaos
