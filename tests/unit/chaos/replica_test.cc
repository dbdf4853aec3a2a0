#include "chaos/replica.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/error.h"
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
