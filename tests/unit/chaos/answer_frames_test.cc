#include "chaos/answer_frames.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace pollux::chaos {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

// castor leads in term 1, pollux takes over in term 2, castor in term 4 (pollux went on alone in 3).
std::vector<Incarnation> two_failovers() {
  return {{"castor-1", 0, Moment(0), {1}}, {"pollux-1", 1, Moment(5), {2, 3}}, {"castor-2", 0, Moment(150), {4}}};
}

AnswerFrame frame(int at, std::size_t host, std::uint64_t sequence, std::uint64_t digest = 0) {
  return {Moment(at), host, 1, sequence, false, digest == 0 ? sequence : digest};
}

TEST(AnswerFrames, OneAfterTheOtherIsWell) {
  EXPECT_THAT(check_answer_frames({frame(10, 0, 1), frame(20, 0, 2), frame(110, 1, 3), frame(200, 0, 4)}, two_failovers()),
              IsEmpty());
  EXPECT_THAT(check_answer_frames({}, {}), IsEmpty());
}

TEST(AnswerFrames, AZombiesAnswerIsFound) {
  EXPECT_THAT(check_answer_frames({frame(10, 0, 1), frame(110, 1, 2), frame(120, 0, 3)}, two_failovers()),
              ElementsAre(HasSubstr("castor-1, which won term 1, answered client 1 #3 at 0.000000 s, after pollux-1")));
}

TEST(AnswerFrames, ATermWonTwiceIsFound) {
  auto incarnations = two_failovers();
  incarnations[2].terms = {3};
  EXPECT_THAT(check_answer_frames({frame(10, 0, 1), frame(110, 1, 2)}, incarnations),
              ElementsAre("term 3 was won by pollux-1 and by castor-2"));
}

TEST(AnswerFrames, AReplicaThatAnswersWithoutATermIsFound) {
  auto incarnations = two_failovers();
  incarnations[1].terms = {};
  EXPECT_THAT(check_answer_frames({frame(10, 0, 1), frame(110, 1, 2)}, incarnations),
              ElementsAre(HasSubstr("pollux-1 answered at 0.000000 s and never won a term")));
}

TEST(AnswerFrames, TwoDifferentAnswersToOneRequestAreFound) {
  EXPECT_THAT(check_answer_frames({frame(10, 0, 1, 77), frame(110, 1, 1, 77)}, two_failovers()), IsEmpty());
  EXPECT_THAT(check_answer_frames({frame(10, 0, 1, 77), frame(110, 1, 1, 78)}, two_failovers()),
              ElementsAre(HasSubstr("client 1 #1 was answered twice, and differently")));
}

// castor and pollux were lost in term 2; pollux booted the guest anew, and castor took over from it.
TEST(AnswerFrames, AMachineThatWasBootedAnewHasTermsOfItsOwn) {
  const std::vector<Incarnation> lives{{"castor-1", 0, Moment(0), {1}, 0},
                                       {"pollux-1", 1, Moment(5), {2}, 0},
                                       {"pollux-2", 1, Moment(150), {1}, 1},
                                       {"castor-2", 0, Moment(160), {2}, 1}};
  EXPECT_THAT(check_answer_frames({frame(10, 0, 1), frame(110, 1, 2), frame(200, 1, 3), frame(210, 0, 4)}, lives), IsEmpty());
  // A read may be answered again, and otherwise, but only by the new machine.
  EXPECT_THAT(check_answer_frames({frame(10, 0, 1, 77), frame(200, 1, 1, 78)}, lives), IsEmpty());
  EXPECT_THAT(check_answer_frames({frame(200, 1, 1, 77), frame(210, 0, 1, 78)}, lives), ElementsAre(HasSubstr("answered twice")));
  EXPECT_THAT(check_answer_frames({frame(10, 0, 1), frame(200, 1, 2), frame(155, 0, 3)}, lives),
              ElementsAre(HasSubstr("after pollux-2 had booted the guest anew")));
}

TEST(AnswerFrames, ALateRepetitionIsNoAnswer) {
  AnswerFrame late = frame(20, 0, 1, 99);
  late.old_request = true;
  EXPECT_THAT(check_answer_frames({frame(10, 0, 1, 77), late}, two_failovers()), IsEmpty());
}

}  // namespace
}  // namespace pollux::chaos
