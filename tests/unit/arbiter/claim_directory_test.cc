#include "protocol/arbiter/claim_directory.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <grp.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <functional>
#include <set>
#include <thread>

#include "protocol/arbiter/bounded_arbiter.h"
#include "tests/unit/arbiter/temporary_directory.h"

namespace pollux::protocol {
namespace {

using namespace std::chrono_literals;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

constexpr VmId kVm{};
constexpr uid_t kNobody = 65534;

class ClaimDirectoryTest : public ::testing::Test {
 protected:
  [[nodiscard]] std::unique_ptr<Arbiter> make(std::chrono::milliseconds timeout = 60s) const {
    return make_arbiter("file:" + directory_.path(), {.timeout = timeout});
  }
  [[nodiscard]] std::vector<std::string> files() const {
    std::vector<std::string> names;
    for (const auto& entry : std::filesystem::directory_iterator(directory_.path())) {
      names.push_back(entry.path().filename());
    }
    std::sort(names.begin(), names.end());
    return names;
  }
  [[nodiscard]] static std::string name(std::uint64_t term) { return ClaimDirectory::file_name(kVm, {term}); }

  TemporaryDirectory directory_;
  const ReplicaId castor_ = ReplicaId::random();
  const ReplicaId pollux_ = ReplicaId::random();
};

// Another process. Made while this one has a single thread.
class Child {
 public:
  explicit Child(const std::function<void()>& body) : pid_(::fork()) {
    if (pid_ != 0) return;
    body();
    ::_exit(0);
  }
  Child(const Child&) = delete;
  Child& operator=(const Child&) = delete;
  ~Child() { wait(); }
  int wait() {
    if (pid_ > 0) {
      EXPECT_EQ(::waitpid(pid_, &status_, 0), pid_);
    }
    pid_ = -1;
    return status_;
  }

 private:
  pid_t pid_;
  int status_ = 0;
};

TEST_F(ClaimDirectoryTest, AClaimIsOneFileWithOneLine) {
  const auto arbiter = make();
  EXPECT_THAT(files(), IsEmpty());  // trying the directory out leaves nothing
  EXPECT_EQ(arbiter->claim({kVm, {1}, castor_}), Verdict::kWon);
  EXPECT_EQ(arbiter->claim({kVm, {1}, pollux_}), Verdict::kLost);
  EXPECT_EQ(name(1), "00000000000000000000000000000000.00000000000000000001");
  EXPECT_THAT(files(), ElementsAre(name(1)));
  std::ifstream file(directory_ / name(1));
  const std::string text((std::istreambuf_iterator<char>(file)), {});
  EXPECT_EQ(text, to_string(castor_) + "\n");
}

TEST_F(ClaimDirectoryTest, OfTwoProcessesExactlyOneWinsEachTerm) {
  constexpr std::uint64_t kTerms = 200;
  int ends[2];
  ASSERT_EQ(::pipe2(ends, O_CLOEXEC), 0);
  const Fd reading(ends[0]);
  Fd writing(ends[1]);
  const auto race = [&](const ReplicaId& claimant, const std::function<void(Verdict)>& tell) {
    const auto arbiter = make();
    for (std::uint64_t term = 1; term <= kTerms; ++term) tell(arbiter->claim({kVm, {term}, claimant}));
  };
  Child child([&] {
    race(pollux_, [&](Verdict verdict) {
      const char won = verdict == Verdict::kWon ? 'w' : verdict == Verdict::kLost ? 'l' : 'u';
      if (::write(writing.get(), &won, 1) != 1) ::_exit(1);
    });
  });
  writing.reset();
  std::string ours;
  race(castor_, [&](Verdict verdict) {
    ours += verdict == Verdict::kWon ? 'w' : verdict == Verdict::kLost ? 'l' : 'u';
  });
  std::string theirs;
  char verdict = 0;
  while (::read(reading.get(), &verdict, 1) == 1) theirs += verdict;
  EXPECT_EQ(child.wait(), 0);
  ASSERT_EQ(theirs.size(), kTerms);
  for (std::size_t i = 0; i < kTerms; ++i) {
    EXPECT_TRUE((ours[i] == 'w' && theirs[i] == 'l') || (ours[i] == 'l' && theirs[i] == 'w')) << i;
  }
}

TEST_F(ClaimDirectoryTest, ACrashBeforeTheLinkDecidesNothing) {
  Child child([&] {
    const ClaimDirectory directory(directory_.path());
    static_cast<void>(directory.write_candidate({kVm, {1}, castor_}));
    ::raise(SIGKILL);
  });
  EXPECT_TRUE(WIFSIGNALED(child.wait()));
  ASSERT_EQ(files().size(), 1U);
  EXPECT_THAT(files()[0], HasSubstr(".candidate."));
  EXPECT_EQ(make()->claim({kVm, {1}, pollux_}), Verdict::kWon);
}

TEST_F(ClaimDirectoryTest, ACrashAfterTheLinkIsADecision) {
  Child child([&] {
    const ClaimDirectory directory(directory_.path());
    static_cast<void>(directory.link_candidate(directory.write_candidate({kVm, {1}, castor_}), name(1)));
    ::raise(SIGKILL);
  });
  EXPECT_TRUE(WIFSIGNALED(child.wait()));
  EXPECT_EQ(make()->claim({kVm, {1}, pollux_}), Verdict::kLost);
  EXPECT_EQ(make()->claim({kVm, {1}, castor_}), Verdict::kWon);
}

// What an NFS client sees that sends a link again because the answer was lost.
TEST_F(ClaimDirectoryTest, ALinkWhoseAnswerWasLostIsFound) {
  const ClaimDirectory directory(directory_.path());
  const std::string candidate = directory.write_candidate({kVm, {1}, castor_});
  EXPECT_TRUE(directory.link_candidate(candidate, name(1)));
  EXPECT_TRUE(directory.link_candidate(candidate, name(1)));
  EXPECT_FALSE(directory.link_candidate(directory.write_candidate({kVm, {1}, pollux_}), name(1)));
}

TEST_F(ClaimDirectoryTest, ADamagedClaimIsNobodys) {
  const auto arbiter = make();
  const std::string id = to_string(castor_);
  for (const std::string& text : {std::string(), id, id + "\n\n", id.substr(1) + "\n", "x" + id + "\n",
                                  std::string(32, '\0') + "\n", std::string(100'000, 'a')}) {
    directory_.write(name(1), text);
    for (const ReplicaId& claimant : {castor_, pollux_}) {
      EXPECT_EQ(arbiter->claim({kVm, {1}, claimant}), Verdict::kUnreachable) << text;
      EXPECT_EQ(arbiter->last_reason(), directory_ / name(1) + " is damaged: it names no replica");
    }
  }
  // That somebody won the term is certain: the machine can go on to the next.
  EXPECT_EQ(arbiter->claim({kVm, {2}, pollux_}), Verdict::kWon);
}

TEST_F(ClaimDirectoryTest, StrangersInTheDirectoryAreNoClaims) {
  directory_.write(name(9) + "0", "");
  directory_.write(to_string(kVm) + ".0000000000000000000x", "");
  directory_.write(to_string(kVm) + ".99999999999999999999", "");  // beyond 64 bits
  directory_.write("README", "");
  EXPECT_EQ(make()->claim({kVm, {1}, castor_}), Verdict::kWon);
}

TEST_F(ClaimDirectoryTest, ALinkInPlaceOfAClaimIsNotFollowed) {
  directory_.write("elsewhere", to_string(castor_) + "\n");
  std::filesystem::create_symlink(directory_ / "elsewhere", directory_ / name(1));
  const auto arbiter = make();
  EXPECT_EQ(arbiter->claim({kVm, {1}, castor_}), Verdict::kUnreachable);
  EXPECT_THAT(arbiter->last_reason(), HasSubstr("cannot open"));
}

TEST_F(ClaimDirectoryTest, ADirectoryThatIsGoneIsUnreachable) {
  const auto arbiter = make();
  EXPECT_EQ(arbiter->claim({kVm, {1}, castor_}), Verdict::kWon);
  std::filesystem::remove_all(directory_.path());
  for (const std::uint64_t term : {1, 2}) {
    EXPECT_EQ(arbiter->claim({kVm, {term}, castor_}), Verdict::kUnreachable);
    EXPECT_THAT(arbiter->last_reason(), HasSubstr(directory_.path()));
  }
  // Another directory of the same name is not the one that holds the decisions.
  std::filesystem::create_directory(directory_.path());
  EXPECT_EQ(arbiter->claim({kVm, {1}, pollux_}), Verdict::kUnreachable);
}

// What a user without the rights of root gets to see.
TEST_F(ClaimDirectoryTest, ADirectoryThatCannotBeReadIsUnreachable) {
  const std::string output = directory_ / "output";
  Child child([&] {
    const int to = ::open(output.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
    const auto arbiter = make();
    if (::chmod(directory_.path().c_str(), ::geteuid() == 0 ? 0700 : 0) != 0) ::_exit(2);
    if (::geteuid() == 0 && (::setgroups(0, nullptr) != 0 || ::setresuid(kNobody, kNobody, kNobody) != 0)) {
      ::_exit(3);
    }
    if (arbiter->claim({kVm, {1}, castor_}) != Verdict::kUnreachable) ::_exit(4);
    const std::string reason = arbiter->last_reason();
    if (::write(to, reason.data(), reason.size()) < 0) ::_exit(5);
  });
  EXPECT_EQ(child.wait(), 0);
  ASSERT_EQ(::chmod(directory_.path().c_str(), 0700), 0);
  std::ifstream file(output);
  std::string reason;
  std::getline(file, reason);
  EXPECT_EQ(reason, "cannot open " + directory_.path() + ": Permission denied");
}

// Opening a FIFO that nobody writes to hangs like a file on a dead server.
TEST_F(ClaimDirectoryTest, AnOpenThatHangsIsUnreachableInTime) {
  ASSERT_EQ(::mkfifo((directory_ / name(1)).c_str(), 0600), 0);
  BoundedArbiter arbiter("file:" + directory_.path(), std::make_shared<ClaimDirectory>(directory_.path()),
                         50ms);
  EXPECT_EQ(arbiter.claim({kVm, {1}, castor_}), Verdict::kUnreachable);
  EXPECT_THAT(arbiter.last_reason(), HasSubstr("no answer within 50 ms"));
  EXPECT_EQ(arbiter.abandoned(), 1U);
  const Fd writer(::open((directory_ / name(1)).c_str(), O_WRONLY | O_CLOEXEC));
  ASSERT_EQ(::write(writer.get(), "x", 1), 1);
  while (arbiter.abandoned() > 0) std::this_thread::yield();
}

}  // namespace
}  // namespace pollux::protocol
