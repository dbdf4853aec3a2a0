// What every kind of arbiter promises, and the choice of one.
#include "protocol/arbiter/arbiter.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <limits>
#include <memory>
#include <thread>
#include <vector>

#include "protocol/arbiter/claim_directory.h"
#include "protocol/arbiter/decider.h"
#include "tests/unit/arbiter/base64.h"
#include "tests/unit/arbiter/etcd_server.h"
#include "tests/unit/arbiter/temporary_directory.h"

namespace pollux::protocol {
namespace {

using namespace std::chrono_literals;
using ::testing::HasSubstr;

VmId some_vm(unsigned char number) {
  VmId vm;
  vm.value.fill(std::byte{number});
  return vm;
}

const VmId kVm = some_vm(0xa1);
const VmId kOtherVm = some_vm(0xa2);

// Where claims of one kind are kept.
class Backend {
 public:
  Backend() = default;
  Backend(const Backend&) = delete;
  Backend& operator=(const Backend&) = delete;
  virtual ~Backend() = default;
  [[nodiscard]] virtual std::string spec() const = 0;
  // Removes a decision, which nobody may do.
  virtual void forget(const VmId& vm, Term term) = 0;
};

class FileBackend final : public Backend {
 public:
  [[nodiscard]] std::string spec() const override { return "file:" + directory_.path(); }
  void forget(const VmId& vm, Term term) override {
    EXPECT_TRUE(std::filesystem::remove(directory_ / ClaimDirectory::file_name(vm, term)));
  }

 private:
  TemporaryDirectory directory_;
};

class EtcdBackend final : public Backend {
 public:
  [[nodiscard]] std::string spec() const override { return "etcd:" + server_.url(); }
  void forget(const VmId& vm, Term term) override {
    const std::string key = "/pollux/" + to_string(vm) + "/" + term_digits(term);
    EXPECT_THAT(server_.post("/v3/kv/deleterange", R"({"key":")" + base64(key) + R"("})"),
                HasSubstr(R"("deleted":"1")"));
  }

 private:
  EtcdServer server_;
};

class EveryArbiter : public ::testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    if (GetParam() == "etcd" && !EtcdServer::available()) {
      GTEST_SKIP() << "there is no etcd in PATH (./run setup)";
    }
    if (GetParam() == "etcd") {
      backend_ = std::make_unique<EtcdBackend>();
    } else {
      backend_ = std::make_unique<FileBackend>();
    }
    arbiter_ = make();
  }
  [[nodiscard]] std::unique_ptr<Arbiter> make() const {
    return make_arbiter(backend_->spec(), {.timeout = 60s});
  }
  Verdict claim(const VmId& vm, std::uint64_t term, const ReplicaId& claimant) {
    return arbiter_->claim({vm, {term}, claimant});
  }

  const ReplicaId castor_ = ReplicaId::random();
  const ReplicaId pollux_ = ReplicaId::random();
  std::unique_ptr<Backend> backend_;
  std::unique_ptr<Arbiter> arbiter_;
};

INSTANTIATE_TEST_SUITE_P(Kinds, EveryArbiter, ::testing::Values("file", "etcd"),
                         [](const auto& kind) { return kind.param; });

TEST_P(EveryArbiter, TheFirstWinsAndTheSecondLoses) {
  EXPECT_EQ(claim(kVm, 1, castor_), Verdict::kWon);
  EXPECT_EQ(arbiter_->last_reason(), "");
  EXPECT_EQ(make()->claim({kVm, {1}, pollux_}), Verdict::kLost);
  EXPECT_EQ(claim(kVm, 1, pollux_), Verdict::kLost);
  EXPECT_EQ(arbiter_->last_reason(), "term 1 was won by replica " + to_string(castor_));
  EXPECT_EQ(arbiter_->name(), backend_->spec());
}

TEST_P(EveryArbiter, TheWinnerMayAskAgain) {
  EXPECT_EQ(claim(kVm, 1, castor_), Verdict::kWon);
  EXPECT_EQ(claim(kVm, 1, pollux_), Verdict::kLost);
  EXPECT_EQ(claim(kVm, 1, castor_), Verdict::kWon);
  EXPECT_EQ(make()->claim({kVm, {1}, castor_}), Verdict::kWon);
}

TEST_P(EveryArbiter, TermsAreWonInSequence) {
  EXPECT_EQ(claim(kVm, 2, castor_), Verdict::kLost);
  EXPECT_EQ(arbiter_->last_reason(), "nobody has won term 1, so term 2 cannot be won");
  EXPECT_EQ(claim(kVm, 1, castor_), Verdict::kWon);
  EXPECT_EQ(claim(kVm, 3, pollux_), Verdict::kLost);
  EXPECT_EQ(claim(kVm, 2, pollux_), Verdict::kWon);
  EXPECT_EQ(claim(kVm, 3, castor_), Verdict::kWon);
}

TEST_P(EveryArbiter, AStaleReplicaLosesEveryTermPassedBy) {
  for (std::uint64_t term = 1; term <= 5; ++term) EXPECT_EQ(claim(kVm, term, castor_), Verdict::kWon);
  for (std::uint64_t term = 1; term <= 5; ++term) EXPECT_EQ(claim(kVm, term, pollux_), Verdict::kLost);
  EXPECT_EQ(claim(kVm, 6, pollux_), Verdict::kWon);
}

TEST_P(EveryArbiter, AWinnerPassedByMustNotLeadAnyMore) {
  EXPECT_EQ(claim(kVm, 1, castor_), Verdict::kWon);
  EXPECT_EQ(claim(kVm, 2, pollux_), Verdict::kWon);
  EXPECT_EQ(claim(kVm, 1, castor_), Verdict::kLost);
  EXPECT_EQ(arbiter_->last_reason(), "term 2 has been won already");
}

// The winner goes on with it, and it may be that nobody could tell it so.
TEST_P(EveryArbiter, AMemberOfTheLastTermIsToldSo) {
  const ReplicaId third = ReplicaId::random();
  EXPECT_EQ(claim(kVm, 1, castor_), Verdict::kWon);
  EXPECT_EQ(arbiter_->claim({kVm, {2}, castor_, {pollux_, third}}), Verdict::kWon);
  EXPECT_EQ(claim(kVm, 2, pollux_), Verdict::kMember);
  EXPECT_EQ(arbiter_->last_reason(), "term 2 was won by replica " + to_string(castor_) + ", which goes on with this one");
  EXPECT_EQ(claim(kVm, 2, ReplicaId::random()), Verdict::kLost);
  EXPECT_EQ(arbiter_->claim({kVm, {3}, castor_, {third}}), Verdict::kWon);
  EXPECT_EQ(claim(kVm, 2, pollux_), Verdict::kLost) << "the last term counts";
  EXPECT_EQ(claim(kVm, 3, pollux_), Verdict::kLost);
  EXPECT_EQ(claim(kVm, 2, third), Verdict::kMember);
  EXPECT_EQ(claim(kVm, 3, third), Verdict::kMember);
  EXPECT_EQ(claim(kVm, 4, third), Verdict::kWon);
  EXPECT_EQ(claim(kVm, 3, castor_), Verdict::kLost);
}

TEST_P(EveryArbiter, MembersAreThoseOfTheClaimThatWon) {
  EXPECT_EQ(claim(kVm, 1, castor_), Verdict::kWon);
  EXPECT_EQ(arbiter_->claim({kVm, {1}, castor_, {pollux_}}), Verdict::kWon);
  EXPECT_EQ(claim(kVm, 1, pollux_), Verdict::kLost);
}

// Nobody may remove decisions; if somebody did, what is left still guards the terms below.
TEST_P(EveryArbiter, AnUnclaimedTermBelowAHigherOneIsLost) {
  for (std::uint64_t term = 1; term <= 5; ++term) EXPECT_EQ(claim(kVm, term, castor_), Verdict::kWon);
  backend_->forget(kVm, {1});
  backend_->forget(kVm, {4});
  for (const std::uint64_t term : {1, 4}) {
    EXPECT_EQ(claim(kVm, term, pollux_), Verdict::kLost);
    EXPECT_EQ(arbiter_->last_reason(), "term 5 has been won already");
    EXPECT_EQ(claim(kVm, term, castor_), Verdict::kLost);
  }
}

TEST_P(EveryArbiter, MachinesHaveTermsOfTheirOwn) {
  EXPECT_EQ(claim(kVm, 1, castor_), Verdict::kWon);
  EXPECT_EQ(claim(kVm, 2, castor_), Verdict::kWon);
  EXPECT_EQ(claim(kOtherVm, 2, pollux_), Verdict::kLost);
  EXPECT_EQ(claim(kOtherVm, 1, pollux_), Verdict::kWon);
  EXPECT_EQ(claim(some_vm(0xa0), 1, pollux_), Verdict::kWon);
}

TEST_P(EveryArbiter, SomeNumbersAreNoTerms) {
  EXPECT_EQ(claim(kVm, 0, castor_), Verdict::kLost);
  EXPECT_EQ(arbiter_->last_reason(), "term 0 cannot be won");
  EXPECT_EQ(claim(kVm, std::numeric_limits<std::uint64_t>::max(), castor_), Verdict::kLost);
  EXPECT_EQ(claim(kVm, std::numeric_limits<std::uint64_t>::max() - 1, castor_), Verdict::kLost);
}

TEST_P(EveryArbiter, OfRacingThreadsExactlyOneWinsEachTerm) {
  constexpr unsigned kThreads = 8;
  constexpr std::uint64_t kTerms = 200;
  std::array<std::atomic<unsigned>, kTerms + 1> winners{};
  std::atomic<unsigned> undecided{0};
  const auto other = make();
  std::vector<std::thread> threads;
  for (unsigned i = 0; i < kThreads; ++i) {
    threads.emplace_back([&, i] {
      const ReplicaId claimant = ReplicaId::random();
      Arbiter& arbiter = i % 2 == 0 ? *arbiter_ : *other;
      for (std::uint64_t term = 1; term <= kTerms; ++term) {
        const Verdict verdict = arbiter.claim({kVm, {term}, claimant});
        if (verdict == Verdict::kWon) ++winners[term];
        if (verdict == Verdict::kUnreachable) ++undecided;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(undecided, 0U);
  for (std::uint64_t term = 1; term <= kTerms; ++term) EXPECT_EQ(winners[term], 1U) << term;
}

// A measurement, to be run by hand.
TEST_P(EveryArbiter, DISABLED_ClaimLatency) {
  constexpr std::uint64_t kTerms = 500;
  std::vector<double> won;
  std::vector<double> lost;
  const auto timed = [&](std::uint64_t term, const ReplicaId& claimant, std::vector<double>& into,
                         Verdict expected) {
    const auto start = std::chrono::steady_clock::now();
    EXPECT_EQ(claim(kVm, term, claimant), expected);
    into.push_back(
        std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count());
  };
  for (std::uint64_t term = 1; term <= kTerms; ++term) {
    timed(term, castor_, won, Verdict::kWon);
    timed(term, pollux_, lost, Verdict::kLost);
  }
  for (auto* times : {&won, &lost}) {
    std::sort(times->begin(), times->end());
    std::printf("%s %s: median %.2f ms, 99 %% %.2f ms, most %.2f ms\n", GetParam().c_str(),
                times == &won ? "won" : "lost", (*times)[kTerms / 2], (*times)[kTerms * 99 / 100],
                times->back());
  }
}

TEST(ReplicaIds, AreRandomAndReadable) {
  EXPECT_NE(ReplicaId::random(), ReplicaId::random());
  EXPECT_EQ(to_string(ReplicaId{}), std::string(32, '0'));
}

TEST(ClaimRecord, HoldsWhatWasClaimed) {
  const ReplicaId holder = ReplicaId::random();
  std::vector<ReplicaId> members;
  for (std::size_t count = 0; count <= kMaxMembers; ++count) {
    const std::string text = record_of({kVm, {1}, holder, members});
    EXPECT_LE(text.size(), kMaxRecordBytes);
    const auto record = parse_record(text);
    ASSERT_TRUE(record) << text;
    EXPECT_EQ(record->holder, to_string(holder));
    ASSERT_EQ(record->members.size(), count);
    for (std::size_t i = 0; i < count; ++i) EXPECT_EQ(record->members[i], to_string(members[i]));
    members.push_back(ReplicaId::random());
  }
}

TEST(ClaimRecord, DamagedNamesNobody) {
  const std::string id(32, 'a');
  std::string too_many = id;
  for (std::size_t i = 0; i <= kMaxMembers; ++i) too_many += " " + id;
  for (const std::string& text : {std::string(), std::string(32, 'A'), std::string(33, 'a'), id + " ", " " + id, id + "  " + id,
                                  id + "\n" + id, id + " " + std::string(31, 'a'), too_many}) {
    EXPECT_FALSE(parse_record(text)) << text;
  }
}

TEST(NoArbiter, EverybodyWins) {
  const auto arbiter = make_arbiter("none");
  EXPECT_EQ(arbiter->claim({kVm, {1}, ReplicaId::random()}), Verdict::kWon);
  EXPECT_EQ(arbiter->claim({kVm, {1}, ReplicaId::random()}), Verdict::kWon);
  EXPECT_EQ(arbiter->last_reason(), "");
  EXPECT_EQ(arbiter->name(), "none");
}

std::string usage_error(const std::string& spec, const ArbiterOptions& options = {}) {
  try {
    static_cast<void>(make_arbiter(spec, options));
  } catch (const UsageError& error) {
    EXPECT_EQ(std::string(error.what()).find('\n'), std::string::npos);
    return error.what();
  }
  return "no error";
}

TEST(MakeArbiter, SaysWhatIsWrongWithASpec) {
  for (const char* spec : {"", "zookeeper:http://h", "file", "none:", "none:x", "etcd2:"}) {
    EXPECT_THAT(usage_error(spec), HasSubstr("arbiter '" + std::string(spec) + "'")) << spec;
  }
  EXPECT_THAT(usage_error("file:claims"), HasSubstr("absolute path"));
  EXPECT_EQ(usage_error("file:/nowhere/claims"),
            "cannot open arbiter directory /nowhere/claims: No such file or directory");
  EXPECT_EQ(usage_error("file:/etc/passwd"), "cannot open arbiter directory /etc/passwd: Not a directory");
  EXPECT_THAT(usage_error("file:/proc/self"), HasSubstr("/proc/self cannot hold claims: "));
  EXPECT_THAT(usage_error("none", {.timeout = 0ms}), HasSubstr("timeout"));
}

TEST(MakeArbiter, SaysWhatIsWrongWithAUrl) {
  EXPECT_THAT(usage_error("etcd:"), HasSubstr("etcd URL ''"));
  EXPECT_THAT(usage_error("etcd:host:2379"), HasSubstr("neither http:// nor https://"));
  EXPECT_THAT(usage_error("etcd:http://a,"), HasSubstr("etcd URL ''"));
  EXPECT_THAT(usage_error("etcd:http://"), HasSubstr("no host"));
  EXPECT_THAT(usage_error("etcd:http://a:b"), HasSubstr("the port is not a number"));
  EXPECT_THAT(usage_error("etcd:http://a:0"), HasSubstr("port 0"));
  EXPECT_THAT(usage_error("etcd:http://a/v3"), HasSubstr("more than host and port"));
  EXPECT_THAT(usage_error("etcd:http://me:secret@a"), HasSubstr("options of their own"));
  EXPECT_THAT(usage_error("etcd:http://a\r\nb"), HasSubstr("no URL has"));
  EXPECT_THAT(usage_error("etcd:http://::1"), HasSubstr("brackets"));
  std::string many = "etcd:http://a";
  for (int i = 0; i < 16; ++i) many += ",http://a";
  EXPECT_THAT(usage_error(many), HasSubstr("more than 16"));
  for (const char* spec : {"etcd:http://a", "etcd:http://a:1/,http://[::1]", "etcd:https://[::1]:2379"}) {
    EXPECT_EQ(usage_error(spec), "no error") << spec;
  }
}

TEST(MakeArbiter, SaysWhatIsWrongWithEtcdOptions) {
  const TemporaryDirectory directory;
  directory.write("password", "secret\n");
  directory.write("two-lines", "a\nb\n");
  directory.write("not-pem", "hello\n");
  const auto hide = [&](const char* name) { ASSERT_EQ(::chmod((directory / name).c_str(), 0600), 0); };
  EXPECT_EQ(usage_error("file:" + directory.path(), {.etcd_user = "me"}),
            "arbiter 'file' takes no etcd options");
  EXPECT_THAT(usage_error("etcd:http://a", {.etcd_ca_file = "/x"}), HasSubstr("https:// endpoints only"));
  EXPECT_THAT(usage_error("etcd:https://a", {.etcd_ca_file = "/x"}), HasSubstr("CA file /x: No such file"));
  EXPECT_THAT(usage_error("etcd:https://a", {.etcd_ca_file = directory / "not-pem"}), HasSubstr("not-pem: "));
  EXPECT_THAT(usage_error("etcd:https://a", {.etcd_certificate_file = "/x"}), HasSubstr("both files"));
  EXPECT_THAT(usage_error("etcd:http://a", {.etcd_user = "me"}), HasSubstr("needs a password file"));
  EXPECT_THAT(usage_error("etcd:https://a", {.etcd_user = "me", .etcd_password_file = "/x"}),
              HasSubstr("password file /x: No such file"));
  EXPECT_THAT(
      usage_error("etcd:https://a", {.etcd_user = "me", .etcd_password_file = directory / "password"}),
      HasSubstr("chmod 600"));
  hide("password");
  hide("two-lines");
  EXPECT_EQ(usage_error("etcd:https://a", {.etcd_user = "me", .etcd_password_file = directory / "password"}),
            "no error");
  EXPECT_THAT(
      usage_error("etcd:https://a", {.etcd_user = "me", .etcd_password_file = directory / "two-lines"}),
      HasSubstr("one line"));
  EXPECT_THAT(usage_error("etcd:http://a", {.etcd_prefix = "/a/"}), HasSubstr("prefix"));
}

}  // namespace
}  // namespace pollux::protocol
