// The machine on the real /dev/kvm: what replication relies on.
#include "vmm/machine/machine.h"

#include <gtest/gtest.h>
#include <pthread.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <set>
#include <stop_token>
#include <thread>

#include "tests/support/test_machine.h"

namespace pollux::testing {
namespace {

using namespace std::chrono_literals;
using guests::kArenaAddress;
using guests::kControlAddress;
using guests::WriterMode;
using vmm::DirtyLog;
using vmm::Gfn;
using vmm::GuestAddress;

constexpr std::uint64_t kMemory = 64 << 20;
constexpr std::uint64_t kPages = 4000;

class OnKvm : public ::testing::TestWithParam<DirtyLog> {
 protected:
  void SetUp() override {
    if (const std::string why = why_no_kvm(); !why.empty()) GTEST_SKIP() << why;
  }
  static vmm::MachineOptions options() { return {.dirty_log = GetParam(), .epoch_length = {}}; }
};

INSTANTIATE_TEST_SUITE_P(DirtyLogs, OnKvm, ::testing::Values(DirtyLog::kRing, DirtyLog::kBitmap),
                         [](const auto& log) { return log.param == DirtyLog::kRing ? "Ring" : "Bitmap"; });

std::set<Gfn> expected_touched(std::uint64_t seed) {
  std::set<Gfn> expected{GuestAddress{kControlAddress}.gfn()};
  for (std::uint64_t page = 0; page < kPages; ++page) {
    if (guests::touches(seed, page)) expected.insert((GuestAddress{kArenaAddress} + page * kPageSize).gfn());
  }
  return expected;
}

TEST_P(OnKvm, DirtyTrackingIsExact) {
  TestMachine test(kMemory, options());
  vmm::Machine& machine = test.machine();
  ASSERT_EQ(machine.dirty_log(), GetParam());
  machine.start_dirty_tracking();
  machine.resume();
  for (const std::uint64_t seed : {1u, 2u, 3u}) {
    test.writer().request(WriterMode::kTouch, kPages, seed);
    ASSERT_TRUE(test.writer().wait_until_served());
    machine.pause();
    std::vector<Gfn> dirty = machine.harvest_dirty_pages();
    machine.resume();
    // The first harvest also holds what booting wrote: the guest's page tables and stack.
    if (seed == 1) std::erase_if(dirty, [](Gfn gfn) { return gfn > GuestAddress{kControlAddress}.gfn() && gfn < GuestAddress{kArenaAddress}.gfn(); });
    if (seed == 1) std::erase_if(dirty, [](Gfn gfn) { return gfn < GuestAddress{kControlAddress}.gfn(); });
    EXPECT_TRUE(std::is_sorted(dirty.begin(), dirty.end()));
    EXPECT_EQ(std::set<Gfn>(dirty.begin(), dirty.end()), expected_touched(seed));
    EXPECT_EQ(dirty.size(), expected_touched(seed).size()) << "a page was reported twice";
  }
}

TEST_P(OnKvm, AnIdleGuestDirtiesNothing) {
  TestMachine test(kMemory, options());
  test.writer().request(WriterMode::kTouch, 1);
  test.machine().start_dirty_tracking();
  test.machine().resume();
  ASSERT_TRUE(test.writer().wait_until_served());
  test.machine().pause();
  (void)test.machine().harvest_dirty_pages();
  test.machine().resume();
  test.machine().pause();
  EXPECT_TRUE(test.machine().harvest_dirty_pages().empty());
}

// What replication does: the pages harvested, laid over an old copy, must give the present memory.
void expect_harvests_to_keep_a_copy(vmm::MachineOptions options, int epochs) {
  TestMachine test(kMemory, options);
  vmm::Machine& machine = test.machine();
  const auto copy = copy_of(machine.memory());
  machine.start_dirty_tracking();
  machine.resume();
  test.writer().request(WriterMode::kCycle, kPages);
  ASSERT_TRUE(test.writer().wait_until_served());
  std::uint64_t rounds = 0;
  for (int epoch = 0; epoch < epochs; ++epoch) {
    ASSERT_TRUE(eventually([&] { return test.writer().rounds() > rounds; }));
    machine.pause();
    rounds = test.writer().rounds();
    for (const Gfn gfn : machine.harvest_dirty_pages()) {
      const auto page = std::as_const(machine.memory()).page(gfn);
      std::copy(page.begin(), page.end(), copy->writable_page(gfn).begin());
    }
    const auto difference = first_difference(machine.memory(), *copy);
    ASSERT_FALSE(difference.has_value()) << "epoch " << epoch << ", frame " << difference->value;
    machine.resume();
  }
}

TEST_P(OnKvm, HarvestedPagesBringACopyUpToDateUnderLoad) { expect_harvests_to_keep_a_copy(options(), 50); }

// An operator's signal may come at any moment, also while KVM is asked what was written.
TEST_P(OnKvm, ASignalInTheMiddleOfAHarvestLosesNothing) {
  ::signal(SIGUSR2, [](int) {});
  std::jthread signals([harvesting = ::pthread_self()](const std::stop_token& ended) {
    while (!ended.stop_requested()) {
      ::pthread_kill(harvesting, SIGUSR2);
      std::this_thread::sleep_for(10us);
    }
  });
  expect_harvests_to_keep_a_copy(options(), 50);
}

// As may a stop: no signal mask keeps that away, and the ring does not survive it (DirtyLog::kRing).
TEST(OnKvmByDefault, BeingStoppedInTheMiddleOfAHarvestLosesNothing) {
  if (const std::string why = why_no_kvm(); !why.empty()) GTEST_SKIP() << why;
  static volatile std::sig_atomic_t ended = 0;
  const pid_t self = ::getpid();
  const pid_t stopper = ::fork();
  ASSERT_GE(stopper, 0);
  if (stopper == 0) {
    ::signal(SIGTERM, [](int) { ended = 1; });
    while (ended == 0 && ::getppid() == self) {
      ::kill(self, SIGSTOP);
      ::kill(self, SIGCONT);
      ::usleep(20);
    }
    ::_exit(0);
  }
  expect_harvests_to_keep_a_copy({}, 50);
  ::kill(stopper, SIGTERM);  // which never leaves this process stopped
  ::waitpid(stopper, nullptr, 0);
}

TEST_P(OnKvm, ARingThatIsSmallerThanTheWorkingSetLosesNothing) {
  constexpr std::uint64_t kLarge = 512 << 20;
  constexpr std::uint64_t kMany = 100'000;  // more than any dirty ring holds
  TestMachine test(kLarge, options());
  test.machine().start_dirty_tracking();
  test.machine().resume();
  test.writer().request(WriterMode::kCycle, kMany);
  ASSERT_TRUE(eventually([&] { return test.writer().rounds() >= 1; }));
  test.machine().pause();
  const std::vector<Gfn> dirty = test.machine().harvest_dirty_pages();
  const Gfn first = GuestAddress{kArenaAddress}.gfn();
  const auto in_arena = std::count_if(dirty.begin(), dirty.end(), [&](Gfn gfn) { return gfn >= first; });
  EXPECT_EQ(static_cast<std::uint64_t>(in_arena), kMany);
}

// The computation's every step depends on all before: one lost or repeated instruction changes the result.
TEST_P(OnKvm, SavedAndRestoredAgainAndAgainItComputesTheSame) {
  constexpr std::uint64_t kSeed = 42;
  auto test = std::make_unique<TestMachine>(kMemory, options());
  test->writer().request(WriterMode::kMix, kPages, kSeed, guests::kEndless);
  test->machine().resume();
  for (int restores = 0; restores < 5; ++restores) {
    const std::uint64_t rounds = test->writer().rounds();
    ASSERT_TRUE(eventually([&] { return test->writer().rounds() > rounds + 20; }));  // a stretch of it
    test->machine().pause();
    const Bytes state = test->machine().save();
    auto memory = copy_of(test->machine().memory());
    test = std::make_unique<TestMachine>(std::move(memory), state, options());
    test->machine().resume();
  }
  test->writer().finish();
  ASSERT_TRUE(test->writer().wait_until_served());
  test->machine().pause();

  TestMachine reference(kMemory, options());
  reference.writer().request(WriterMode::kMix, kPages, kSeed, test->writer().steps());
  reference.machine().resume();
  ASSERT_TRUE(reference.writer().wait_until_served());
  reference.machine().pause();
  EXPECT_EQ(test->writer().checksum(), reference.writer().checksum());
  EXPECT_FALSE(first_difference(test->machine().memory(), reference.machine().memory()).has_value());
}

TEST_P(OnKvm, PausingAndResumingUnderLoadNeverSticks) {
  TestMachine test(kMemory, options());
  test.writer().request(WriterMode::kCycle, 64);
  test.machine().start_dirty_tracking();
  test.machine().resume();
  ASSERT_TRUE(test.writer().wait_until_served());
  for (int i = 0; i < 2000; ++i) {
    test.machine().pause();
    const std::uint64_t rounds = test.writer().rounds();
    (void)test.machine().harvest_dirty_pages();
    EXPECT_EQ(test.writer().rounds(), rounds) << "the guest ran while paused";
    test.machine().resume();
  }
  const std::uint64_t rounds = test.writer().rounds();
  EXPECT_TRUE(eventually([&] { return test.writer().rounds() > rounds; }));
}

TEST_P(OnKvm, EndsWhenAsked) {
  TestMachine test(kMemory, options());
  test.machine().resume();
  EXPECT_FALSE(test.machine().wait_for_exit(0ms).has_value());
  test.machine().request_exit();
  const auto exit = test.machine().wait_for_exit(10s);
  ASSERT_TRUE(exit.has_value());
  EXPECT_EQ(exit->reason, vmm::ExitReason::kRequested);
}

TEST_P(OnKvm, WhatKvmCannotRunIsTheHostsFailureNotTheGuests) {
  TestMachine test(kMemory, options());
  test.machine().resume();
  take_away_page(test.machine().memory(), GuestAddress{kArenaAddress} + 5 * kPageSize);
  test.writer().request(WriterMode::kCycle, 10);
  const auto exit = test.machine().wait_for_exit(30s);
  ASSERT_TRUE(exit.has_value());
  EXPECT_EQ(exit->reason, vmm::ExitReason::kHostFailed);
  EXPECT_NE(exit->detail.find("Bad address"), std::string::npos) << exit->detail;
}

}  // namespace
}  // namespace pollux::testing
