// A machine that loses its host again and again, and is protected again each time: the leading process is killed with
// SIGKILL, the other promotes, the dead one is started again and joins. The computation that all of them were in the middle
// of must end with the result of an undisturbed run.
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <signal.h>
#include <spdlog/spdlog.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <filesystem>
#include <future>
#include <memory>
#include <optional>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "base/error.h"
#include "protocol/session/keys.h"
#include "tests/support/test_machine.h"

namespace pollux::testing {
namespace {

using namespace std::chrono_literals;

constexpr std::uint64_t kMemoryMib = 32;
constexpr std::uint64_t kSeed = 13;
// ThreadSanitizer looks at threads, of which one loss is like the next, and takes its time.
#ifdef __SANITIZE_THREAD__
constexpr std::size_t kLosses = 3;
#else
constexpr std::size_t kLosses = 6;
#endif

// A port of loopback that nobody listens on, at this moment.
std::uint16_t free_port() {
  const int socket = ::socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof address;
  auto* any = reinterpret_cast<sockaddr*>(&address);
  POLLUX_ASSERT(::bind(socket, any, size) == 0 && ::getsockname(socket, any, &size) == 0);
  ::close(socket);
  return ntohs(address.sin_port);
}

// replica_process.cc as a child process.
class ReplicaProcess {
 public:
  explicit ReplicaProcess(std::vector<std::string> words) {
    std::array<int, 2> pipe{};
    POLLUX_ASSERT(::pipe(pipe.data()) == 0);
    pid_ = ::fork();
    POLLUX_ASSERT(pid_ >= 0);
    if (pid_ == 0) {
      ::dup2(pipe[1], STDOUT_FILENO);
      ::close(pipe[0]);
      ::close(pipe[1]);
      std::vector<char*> arguments;
      words.insert(words.begin(), "replica_process");
      for (std::string& word : words) arguments.push_back(word.data());
      arguments.push_back(nullptr);
      ::execv(POLLUX_REPLICA_PROCESS, arguments.data());
      ::_exit(127);
    }
    ::close(pipe[1]);
    output_ = ::fdopen(pipe[0], "r");
  }
  ~ReplicaProcess() {
    kill();
    std::fclose(output_);
  }

  // The next line it prints that begins like this; nothing when it ends without.
  std::optional<std::string> wait_for(const std::string& beginning) {
    char line[128];
    while (std::fgets(line, sizeof line, output_) != nullptr) {
      const std::string text(line, std::string_view(line).find('\n'));
      if (text.starts_with(beginning)) return text;
    }
    return std::nullopt;
  }
  void hand_over() const { ::kill(pid_, SIGUSR1); }
  void finish() const { ::kill(pid_, SIGUSR2); }
  [[nodiscard]] bool has_ended() {
    if (pid_ > 0 && ::waitpid(pid_, nullptr, WNOHANG) == pid_) pid_ = -1;
    return pid_ < 0;
  }
  void kill() {
    if (pid_ <= 0) return;
    ::kill(pid_, SIGKILL);
    ::waitpid(pid_, nullptr, 0);
    pid_ = -1;
  }

 private:
  pid_t pid_ = -1;
  FILE* output_ = nullptr;
};

class Reprotection : public ::testing::Test {
 protected:
  void SetUp() override {
    if (const std::string why = why_no_kvm(); !why.empty()) GTEST_SKIP() << why;
    spdlog::set_level(spdlog::level::warn);
    protocol::session::initialize_crypto();
    char path[] = "/tmp/pollux-reprotection-XXXXXX";
    ASSERT_NE(::mkdtemp(path), nullptr);
    folder_ = path;
    std::filesystem::create_directory(folder_ + "/claims");
    for (const char* host : {"/0", "/1"}) write_key_pair(folder_ + host, protocol::session::SecretKey::generate());
    ports_ = {free_port(), free_port()};
    third_port_ = free_port();
  }
  void TearDown() override {
    if (!folder_.empty()) std::filesystem::remove_all(folder_);
  }

  // It ends the computation that it is in the middle of, as one would that nothing happened to.
  static void expect_undisturbed_end(ReplicaProcess& leader, std::uint64_t pages) {
    leader.finish();
    const auto steps = leader.wait_for("ended after");
    const auto checksum = leader.wait_for("checksum");
    ASSERT_TRUE(steps && checksum);
    EXPECT_EQ(number_of(checksum), undisturbed_checksum(kMemoryMib << 20, pages, kSeed, number_of(steps))) << *steps;
  }

  std::vector<std::string> words(const std::string& role, std::size_t host) const {
    return {role, std::to_string(ports_[host]), folder_ + "/" + std::to_string(host),
            folder_ + "/" + std::to_string(1 - host) + ".pub", folder_ + "/claims"};
  }
  std::unique_ptr<ReplicaProcess> lead(std::size_t host, std::uint64_t pages) const {
    std::vector<std::string> all = words("lead", host);
    for (const std::uint64_t number : {kMemoryMib, pages, kSeed}) {
      all.push_back(std::to_string(number));
    }
    all.push_back(std::to_string(ports_[1 - host]));
    return std::make_unique<ReplicaProcess>(all);
  }
  std::unique_ptr<ReplicaProcess> join(std::size_t host) const {
    std::vector<std::string> all = words("join", host);
    all.push_back(std::to_string(ports_[1 - host]));
    return std::make_unique<ReplicaProcess>(all);
  }
  // A third host's; it has the key of the second.
  std::unique_ptr<ReplicaProcess> join_as_third() const {
    return std::make_unique<ReplicaProcess>(std::vector<std::string>{"join", std::to_string(third_port_), folder_ + "/1",
                                                                     folder_ + "/0.pub", folder_ + "/claims",
                                                                     std::to_string(ports_[0])});
  }
  // The number at the end of a line like "entered at 17".
  static std::uint64_t number_of(const std::optional<std::string>& line) {
    return line ? std::stoull(line->substr(line->rfind(' ') + 1)) : 0;
  }
  std::size_t terms_claimed() const {
    const std::filesystem::directory_iterator claims(folder_ + "/claims");
    return static_cast<std::size_t>(std::ranges::count_if(
        claims, [](const auto& entry) { return !entry.path().filename().string().starts_with("."); }));
  }

  std::string folder_;
  std::array<std::uint16_t, 2> ports_{};
  std::uint16_t third_port_ = 0;
};

TEST_F(Reprotection, ThereAndBackTheComputationEndsAsIfNothingHadHappened) {
  constexpr std::uint64_t kPages = 2000;
  std::mt19937_64 random(17);
  std::unique_ptr<ReplicaProcess> leader = lead(0, kPages);
  for (std::size_t loss = 0; loss < kLosses; ++loss) {
    SCOPED_TRACE(loss);
    std::unique_ptr<ReplicaProcess> follower = join(1 - loss % 2);
    ASSERT_TRUE(leader->wait_for("protected"));
    std::this_thread::sleep_for(std::chrono::milliseconds(random() % 150));  // the random moment
    leader->kill();
    ASSERT_TRUE(follower->wait_for("promoted"));
    leader = std::move(follower);
  }
  expect_undisturbed_end(*leader, kPages);
  EXPECT_EQ(terms_claimed(), kLosses + 1);
}

// By switchovers: each process leads, hands over, joins, and leads again. The time from the order to the first entry of the
// guest on the other side holds the rest of the epoch, its commit, the claim and the restore.
TEST_F(Reprotection, SwitchedThereAndBackTheComputationEndsAsIfNothingHadHappened) {
  constexpr std::uint64_t kPages = 2000;
  std::mt19937_64 random(23);
  std::unique_ptr<ReplicaProcess> leader = lead(0, kPages);
  std::unique_ptr<ReplicaProcess> follower = join(1);
  std::vector<std::uint64_t> times_us;
  std::vector<std::uint64_t> still_us;
  for (std::size_t switchover = 0; switchover < kLosses; ++switchover) {
    SCOPED_TRACE(switchover);
    ASSERT_TRUE(leader->wait_for("protected"));
    std::this_thread::sleep_for(std::chrono::milliseconds(random() % 150));  // the random moment
    leader->hand_over();
    const auto ordered = leader->wait_for("switching at");
    ASSERT_TRUE(ordered && follower->wait_for("promoted"));
    times_us.push_back(number_of(follower->wait_for("entered at")) - number_of(ordered));
    still_us.push_back(number_of(leader->wait_for("switched, standing still for")));
    std::swap(leader, follower);
  }
  // The rest goes faster alone.
  ASSERT_TRUE(leader->wait_for("protected"));
  follower->kill();
  expect_undisturbed_end(*leader, kPages);
  EXPECT_GE(terms_claimed(), kLosses + 1) << "and one for going on alone, if it was not done before";
  std::ranges::sort(times_us);
  std::ranges::sort(still_us);
  RecordProperty("switchover_us_median", static_cast<int>(times_us[times_us.size() / 2]));
  RecordProperty("switchover_us_max", static_cast<int>(times_us.back()));
  const auto ms = [](std::uint64_t us) { return static_cast<double>(us) / 1000; };
  std::printf("switchover: from the order to the guest's first entry: median %.1f ms, longest %.1f ms; from the pause to the "
              "won term: median %.1f ms, longest %.1f ms\n",
              ms(times_us[times_us.size() / 2]), ms(times_us.back()), ms(still_us[still_us.size() / 2]),
              ms(still_us.back()));
}

// Before its last epoch, after it, with HandOver on its way or answered: one of the two leads, and with the same state.
TEST_F(Reprotection, APrimaryThatIsKilledInAHandoverCostsNothing) {
  constexpr std::uint64_t kPages = 2000;
  std::mt19937_64 random(29);
  std::unique_ptr<ReplicaProcess> leader = lead(0, kPages);
  for (std::size_t loss = 0; loss < kLosses; ++loss) {
    SCOPED_TRACE(loss);
    std::unique_ptr<ReplicaProcess> follower = join(1 - loss % 2);
    ASSERT_TRUE(leader->wait_for("protected"));
    leader->hand_over();
    std::this_thread::sleep_for(std::chrono::milliseconds(random() % 40));  // the random moment
    leader->kill();
    ASSERT_TRUE(follower->wait_for("promoted"));
    leader = std::move(follower);
  }
  expect_undisturbed_end(*leader, kPages);
  EXPECT_EQ(terms_claimed(), kLosses + 1);
}

// One primary is protected again and again: outputs held and let out, dirty tracking begun afresh, a term for each loss.
TEST_F(Reprotection, ProtectionComesAndGoes) {
  constexpr std::uint64_t kPages = 2000;
  const std::unique_ptr<ReplicaProcess> leader = lead(0, kPages);
  for (int loss = 0; loss < 3; ++loss) {
    const std::unique_ptr<ReplicaProcess> lost = join(1);
    ASSERT_TRUE(leader->wait_for("protected"));
    lost->kill();
    ASSERT_TRUE(leader->wait_for("unprotected"));
  }
  const std::unique_ptr<ReplicaProcess> follower = join(1);
  ASSERT_TRUE(leader->wait_for("protected"));
  leader->kill();
  EXPECT_TRUE(follower->wait_for("promoted"));
  expect_undisturbed_end(*follower, kPages);
  EXPECT_EQ(terms_claimed(), 5);
}

// It writes three quarters of its memory faster than any round of the sync can send it.
TEST_F(Reprotection, ABackupJoinsWhileTheGuestWritesHeavily) {
  constexpr std::uint64_t kPages = 6000;
  const std::unique_ptr<ReplicaProcess> leader = lead(0, kPages);
  const std::unique_ptr<ReplicaProcess> follower = join(1);
  ASSERT_TRUE(leader->wait_for("protected"));
  leader->kill();
  EXPECT_TRUE(follower->wait_for("promoted"));
  expect_undisturbed_end(*follower, kPages);
}

// Whenever it dies in its sync, the primary goes on unprotected, claims no term for that, and takes the next.
TEST_F(Reprotection, JoinersThatDieInTheirSyncCostNothing) {
  constexpr std::uint64_t kPages = 4000;
  std::mt19937_64 random(19);
  const std::unique_ptr<ReplicaProcess> leader = lead(0, kPages);
  for (int attempt = 0; attempt < 5; ++attempt) {
    const std::unique_ptr<ReplicaProcess> joiner = join(1);
    std::this_thread::sleep_for(std::chrono::milliseconds(random() % 400));
  }
  const std::unique_ptr<ReplicaProcess> follower = join(1);
  ASSERT_TRUE(follower->wait_for("protecting"));  // the leader may have been protected by some of the others, too
  leader->kill();
  EXPECT_TRUE(follower->wait_for("promoted"));
  expect_undisturbed_end(*follower, kPages);
}

// Its sync runs beside the epochs, while the guest writes much in each of them.
TEST_F(Reprotection, AThirdHostJoinsAProtectedMachineAndTakesOver) {
  constexpr std::uint64_t kPages = 2000;
  const std::unique_ptr<ReplicaProcess> leader = lead(0, kPages);
  const std::unique_ptr<ReplicaProcess> second = join(1);
  ASSERT_TRUE(leader->wait_for("backups 1"));
  const std::unique_ptr<ReplicaProcess> third = join_as_third();
  ASSERT_TRUE(leader->wait_for("backups 2"));
  second->kill();
  ASSERT_TRUE(leader->wait_for("backups 1"));
  leader->kill();
  ASSERT_TRUE(third->wait_for("promoted"));
  expect_undisturbed_end(*third, kPages);
  EXPECT_EQ(terms_claimed(), 3);
}

// Backup and primary lost at once, in the worst moment: the primary has won the term in which it goes on with the other
// backup, and did not live to say so.
TEST_F(Reprotection, AThirdHostTakesOverFromAPrimaryThatDiesAsItsClaimIsDecided) {
  constexpr std::uint64_t kPages = 2000;
  ::setenv("POLLUX_DIES_WITH_TERM", "2", 1);
  const std::unique_ptr<ReplicaProcess> leader = lead(0, kPages);
  ::unsetenv("POLLUX_DIES_WITH_TERM");
  const std::unique_ptr<ReplicaProcess> second = join(1);
  ASSERT_TRUE(leader->wait_for("backups 1"));
  const std::unique_ptr<ReplicaProcess> third = join_as_third();
  ASSERT_TRUE(leader->wait_for("backups 2"));
  second->kill();
  ASSERT_TRUE(third->wait_for("promoted"));
  EXPECT_TRUE(eventually([&] { return leader->has_ended(); }));
  expect_undisturbed_end(*third, kPages);
  EXPECT_EQ(terms_claimed(), 3);
}

// Half a sync vouches for nothing: the machine is alone, and whoever joins then protects it.
TEST_F(Reprotection, TheOnlyBackupDiesWhileAnotherJoins) {
  constexpr std::uint64_t kPages = 2000;
  std::mt19937_64 random(31);
  const std::unique_ptr<ReplicaProcess> leader = lead(0, kPages);
  std::unique_ptr<ReplicaProcess> protector = join(1);
  std::size_t in_the_midst = 0;
  ASSERT_TRUE(leader->wait_for("backups 1"));
  for (int loss = 0; loss < 5; ++loss) {
    SCOPED_TRACE(loss);
    const auto another = [&] { return loss % 2 == 0 ? join_as_third() : join(1); };
    std::unique_ptr<ReplicaProcess> joiner = another();
    std::this_thread::sleep_for(std::chrono::milliseconds(random() % 900));  // the random moment
    protector->kill();
    auto alone_with_it = std::async(std::launch::async, [&] { return leader->wait_for("backups 1"); });
    while (alone_with_it.wait_for(5ms) != std::future_status::ready) {
      if (!joiner->has_ended()) continue;
      ++in_the_midst;
      joiner = another();
    }
    ASSERT_TRUE(alone_with_it.get());
    protector = std::move(joiner);
  }
  RecordProperty("in_the_midst", static_cast<int>(in_the_midst));
  leader->kill();
  EXPECT_TRUE(protector->wait_for("promoted"));
  expect_undisturbed_end(*protector, kPages);
}

}  // namespace
}  // namespace pollux::testing
