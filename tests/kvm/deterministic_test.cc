// The deterministic machine on the real /dev/kvm: the same epochs from the same inputs, whatever happens in between.
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <random>
#include <thread>

#include "base/error.h"
#include "tests/support/deterministic_guest.h"
#include "tests/support/test_machine.h"
#include "vmm/deterministic/deterministic_state.capnp.h"
#include "vmm/guest/abi.h"
#include "vmm/state/machine_state.h"
#include "vmm/state/message.h"

namespace pollux::testing {
namespace {

using namespace std::chrono_literals;
using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;
using ::testing::StartsWith;
using vmm::EpochEnd;

class Deterministic : public ::testing::Test {
 protected:
  void SetUp() override {
    if (const std::string why = why_no_kvm(); !why.empty()) GTEST_SKIP() << why;
  }
};

DeterministicGuestConfig memory_writer(const std::string& parameters) {
  DeterministicGuestConfig config;
  config.kernel = "memory_writer";
  config.command_line = parameters;
  return config;
}

DeterministicGuestConfig disk_check() {
  DeterministicGuestConfig config;
  config.kernel = "disk_check";
  config.command_line = "blocks=200 rounds=2";
  config.disks = {1 << 20};
  return config;
}

// --- Every guest repeats itself ---

struct Subject {
  const char* name;
  DeterministicGuestConfig config;
  vmm::EpochLength length;
  const char* prints;
};

void PrintTo(const Subject& subject, std::ostream* out) { *out << subject.name; }

std::vector<Subject> subjects() {
  DeterministicGuestConfig compute{.kernel = "compute"};
  DeterministicGuestConfig idle{.kernel = "idle", .command_line = "ticks=10 period_ms=3"};
  DeterministicGuestConfig runtime{.kernel = "runtime_check", .command_line = "first=1 text=abc number=42 last="};
  return {{"compute", compute, {1'000}, "pointer_chase 0x"},
          {"memory_writer", memory_writer("pages=300 rounds=20 pause_ms=1"), {1'000}, "memory_writer 0x"},
          {"disk_check", disk_check(), {3'001}, "disk_check done, repeated 0"},
          {"idle", idle, {100'000}, "tick 10"},
          {"runtime_check", runtime, {20'000}, "runtime_check done"}};
}

class EveryGuest : public Deterministic, public ::testing::WithParamInterface<Subject> {
 protected:
  [[nodiscard]] DeterministicGuestConfig with(vmm::DirtyLog log) const {
    DeterministicGuestConfig config = GetParam().config;
    config.options.dirty_log = log;
    return config;
  }
};

TEST_P(EveryGuest, RepeatsWhatWasRecorded) {
  DeterministicGuest first(with(vmm::DirtyLog::kRing));
  const RecordedRun run = first.record(GetParam().length);
  ASSERT_TRUE(run.ended()) << first.console();
  EXPECT_THAT(first.console(), HasSubstr(GetParam().prints));
  for (const vmm::DirtyLog log : {vmm::DirtyLog::kRing, vmm::DirtyLog::kBitmap}) {
    DeterministicGuest second(with(log));
    EXPECT_EQ(second.replay(run), "");
    EXPECT_EQ(second.machine().exit(), run.exit);
    EXPECT_EQ(second.console(), first.console());
    EXPECT_EQ(first_difference(first.machine().memory(), second.machine().memory()), std::nullopt);
    for (std::size_t i = 0; i < GetParam().config.disks.size(); ++i) EXPECT_EQ(first.disk(i), second.disk(i));
  }
}

TEST_P(EveryGuest, RepeatsItAlsoWhenInterruptedAgainAndAgain) {
  DeterministicGuest first(GetParam().config);
  const RecordedRun run = first.record(GetParam().length);
  DeterministicGuest second(GetParam().config);
  std::atomic<bool> done = false;
  second.machine().interrupt();  // once at least, however short the run is
  std::thread nuisance([&] {
    while (!done) {
      second.machine().interrupt();
      std::this_thread::sleep_for(200us);  // not a wait for anything: the machine is to get on, too
    }
  });
  std::string how;
  std::size_t stopped = 0;
  for (std::size_t i = 0; i < run.inputs.size() && how.empty();) {
    const EpochEnd end = second.machine().replay_epoch(vmm::decode_epoch_inputs(run.inputs[i]));
    if (end.why == EpochEnd::Why::kStopped) {
      ++stopped;
      continue;
    }
    how = end.divergence + difference(run.digests[i], end.digest).value_or("");
    ++i;
  }
  done = true;
  nuisance.join();
  EXPECT_EQ(how, "");
  EXPECT_GT(stopped, 0u);
  EXPECT_EQ(second.console(), first.console());
}

// Moved into a new machine every so many epochs: what it does, and the digests, are those of one machine.
TEST_P(EveryGuest, GoesOnInARestoredMachineAsIfNothingHadHappened) {
  DeterministicGuest first(GetParam().config);
  const RecordedRun run = first.record(GetParam().length);
  auto machine = std::make_unique<DeterministicGuest>(GetParam().config);
  std::string console;
  std::mt19937_64 random(5);
  while (!machine->machine().exit()) {
    ASSERT_EQ(machine->replay(run, 1 + random() % (run.epochs.size() / 7)), "");
    console += machine->console();
    machine = std::make_unique<DeterministicGuest>(GetParam().config, *machine);
  }
  EXPECT_EQ(machine->machine().exit(), run.exit);
  EXPECT_EQ(console, first.console());
}

INSTANTIATE_TEST_SUITE_P(All, EveryGuest, ::testing::ValuesIn(subjects()),
                         [](const auto& subject) { return std::string(subject.param.name); });

// --- Divergence ---

class ReadsWhatNobodyForwards : public Deterministic, public ::testing::WithParamInterface<const char*> {};

INSTANTIATE_TEST_SUITE_P(Instructions, ReadsWhatNobodyForwards, ::testing::Values("rdtsc", "rdrand"),
                         [](const auto& instruction) { return std::string(instruction.param); });

TEST_P(ReadsWhatNobodyForwards, AndIsFoundInTheSameEpoch) {
  const DeterministicGuestConfig config{.kernel = "misbehave", .command_line = std::string("what=") + GetParam()};
  DeterministicGuest first(config);
  // Few readings in an epoch, which are kept on a page that nothing else is on.
  const RecordedRun run = first.record({10});
  if (!run.ended()) {
    // CR4.TSD is honoured: reading the time stamp counter is an exception. Nothing makes RDRAND one.
    ASSERT_EQ(std::string(GetParam()), "rdtsc");
    EXPECT_EQ(run.exit->detail, fmt::format("the guest failed with code {:#x}", guest_abi::kExitException + 13));
    GTEST_SKIP() << "this KVM makes RDTSC an exception";
  }
  const auto writes = [&run](std::size_t epoch, vmm::Gfn page) {
    return std::ranges::count(pages_of(run.digests[epoch]), page) > 0;
  };
  const std::size_t reading = run.epochs.size() / 2;
  ASSERT_EQ(run.digests[reading].pages.size(), 1u);
  const vmm::Gfn kept = run.digests[reading].pages.front().gfn;
  std::size_t read_first = 0;
  while (!writes(read_first, kept)) ++read_first;
  EXPECT_GT(read_first, 1u);
  DeterministicGuest second(config);
  EXPECT_THAT(second.replay(run), AllOf(StartsWith(fmt::format("epoch {}:", read_first)),
                                        HasSubstr(fmt::format(" {:#x}", address_of(kept).value))));
}

TEST_F(Deterministic, AFlippedByteIsFoundInTheEpochThatTouchesItsPage) {
  const DeterministicGuestConfig config = memory_writer("pages=4 rounds=400");
  DeterministicGuest first(config);
  const RecordedRun run = first.record({500});
  ASSERT_TRUE(run.ended());
  // An epoch in the midst of the writing, and of what it writes a page of data.
  const std::size_t before = run.epochs.size() / 2;
  const auto& written = run.digests[before].pages;
  ASSERT_GE(written.size(), 4u);
  const vmm::Gfn victim = written[written.size() / 2].gfn;
  DeterministicGuest second(config);
  ASSERT_EQ(second.replay(run, before), "");
  // As a fault of the memory would: nobody is told.
  const auto page = second.machine().memory().page(victim);
  const_cast<std::byte&>(page[kPageSize - 1]) ^= std::byte{4};
  EXPECT_THAT(second.replay(run), AllOf(StartsWith("epoch " + std::to_string(before) + ":"),
                                        HasSubstr(fmt::format(" {:#x}", address_of(victim).value))));
}

TEST_F(Deterministic, AGuestThatComesToNoEpochsEndHasDiverged) {
  DeterministicGuestConfig config = memory_writer("pages=4 rounds=400");
  config.options.longest_epoch = 300ms;
  DeterministicGuest first(config);
  const RecordedRun run = first.record({500});
  ASSERT_TRUE(run.ended());
  const std::size_t before = run.epochs.size() / 2;
  DeterministicGuest second(config);
  ASSERT_EQ(second.replay(run, before), "");
  ASSERT_GT(make_sites_loop(second.machine().memory()), 0u);
  EXPECT_THAT(second.replay(run), StartsWith("epoch " + std::to_string(before) + ": it does not end"));
  EXPECT_FALSE(second.machine().altered_pages().empty());
  EXPECT_THROW((void)second.machine().save(), Error);
}

TEST_F(Deterministic, InputsOfAnotherRunAreRefusedInALine) {
  const DeterministicGuestConfig config = disk_check();
  DeterministicGuest first(config);
  const RecordedRun run = first.record({3'001});
  const auto completing = std::find_if(run.epochs.begin(), run.epochs.end(),
                                       [](const EpochEnd& end) { return !end.inputs.completions.empty(); });
  ASSERT_NE(completing, run.epochs.end());
  const auto index = static_cast<std::size_t>(completing - run.epochs.begin());
  const auto replay_with = [&](const std::function<void(vmm::EpochInputs&)>& change) {
    DeterministicGuest second(config);
    EXPECT_EQ(second.replay(run, index), "");
    vmm::EpochInputs inputs = completing->inputs;
    change(inputs);
    const EpochEnd end = second.machine().replay_epoch(inputs);
    EXPECT_EQ(end.why, EpochEnd::Why::kDiverged);
    EXPECT_THROW((void)second.machine().save(), Error);
    return end.divergence;
  };
  EXPECT_THAT(replay_with([](auto& inputs) { inputs.completions.front().completion.head ^= 0x55; }),
              HasSubstr("which is not outstanding"));
  EXPECT_THAT(replay_with([](auto& inputs) { inputs.completions.front().disk.value = 7; }), HasSubstr("disk 7"));
  EXPECT_THAT(replay_with([](auto& inputs) { inputs.environment.push_back(1); }), HasSubstr("environment values"));
  EXPECT_THAT(replay_with([](auto& inputs) { inputs.arrivals.push_back(vmm::FrameArrival{{0}, Bytes(60)}); }),
              HasSubstr("device that is not there"));
  EXPECT_THAT(replay_with([](auto& inputs) {
                inputs.boundary = inputs.boundary == vmm::EpochBoundary::kWaited ? vmm::EpochBoundary::kExpired
                                                                                  : vmm::EpochBoundary::kWaited;
              }),
              HasSubstr("it ended because"));
}

// --- Disks ---

// Records up to the end of an epoch in which a request is outstanding and cannot be performed.
RecordedRun record_with_a_request_outstanding(DeterministicGuest& guest, vmm::EpochLength length) {
  guest.hold_disks();
  std::atomic<bool> done = false;
  // The guest waits for its disk: only an interrupt ends that epoch.
  std::thread interrupter([&] {
    guest.wait_until_disk_held();
    while (!done) {
      guest.machine().interrupt();
      std::this_thread::sleep_for(1ms);  // not a wait for anything: the machine is to get on, too
    }
  });
  RecordedRun run;
  while (!guest.is_disk_held()) guest.record(run, length, 1);
  done = true;
  interrupter.join();
  return run;
}

TEST_F(Deterministic, SavesWithoutWaitingForADiskAndRepeatsItsRequests) {
  DeterministicGuest first(disk_check());
  const RecordedRun begun = record_with_a_request_outstanding(first, {3'001});
  // Saved while the request stands: neither the data of writes nor the results of reads are lost.
  DeterministicGuest second(disk_check(), first);
  const RecordedRun rest = second.record({3'001});
  EXPECT_TRUE(rest.ended()) << second.console();
  EXPECT_THAT(second.console(), HasSubstr("disk_check done, repeated 0"));
}

// What a disk does after the epoch's end may belong to outputs that are lost with this host: the state must not rely on it.
TEST_F(Deterministic, AStateRepeatsWhatWasPerformedOnlyAfterTheEpochsEnd) {
  DeterministicGuest first(disk_check());
  (void)record_with_a_request_outstanding(first, {3'001});
  const Bytes before = first.disk(0);
  first.release_disks();
  ASSERT_TRUE(eventually([&] { return first.disk_copy(0) != before; }));
  DeterministicGuest second(disk_check(), first);
  second.disk(0) = before;
  EXPECT_TRUE(second.record({3'001}).ended()) << second.console();
}

TEST_F(Deterministic, APromotedMachineAnswersOutstandingRequestsAsUncertain) {
  DeterministicGuest primary(disk_check());
  const RecordedRun run = record_with_a_request_outstanding(primary, {3'001});
  DeterministicGuest backup(disk_check());
  ASSERT_EQ(backup.replay(run), "");
  backup.machine().promote();
  const RecordedRun rest = backup.record({3'001});
  ASSERT_TRUE(rest.ended()) << backup.console();
  const auto& completions = rest.epochs.front().inputs.completions;
  ASSERT_FALSE(completions.empty());
  for (const auto& done : completions) EXPECT_EQ(done.completion.status, guest_abi::kBlockUncertain);
  // The driver repeated each, and the data is right.
  EXPECT_THAT(backup.console(), HasSubstr("disk_check done, repeated " + std::to_string(completions.size())));
  DeterministicGuest undisturbed(disk_check());
  undisturbed.record({3'001});
  EXPECT_EQ(backup.disk(0), undisturbed.disk(0));
  // What follows a promotion can be repeated as anything else.
  DeterministicGuest next(disk_check());
  ASSERT_EQ(next.replay(run), "");
  EXPECT_EQ(next.replay(rest), "");
}

// --- Running freely ---

TEST_F(Deterministic, RunsFreelyAndPausesBetweenEpochs) {
  DeterministicGuestConfig config{.kernel = "compute"};
  config.options.epoch_length = {10'000};
  DeterministicGuest reference(config);
  ASSERT_TRUE(reference.record({10'000}).ended());

  auto guest = std::make_unique<DeterministicGuest>(config);
  std::string console;
  int pauses = 0;
  for (; !guest->machine().wait_for_exit(0ms); ++pauses) {
    vmm::DeterministicMachine& machine = guest->machine();
    machine.resume();
    if (pauses % 2 == 0) (void)machine.wait_for_exit(1ms);  // for as long it runs
    machine.pause();
    if (pauses % 4 != 3 || machine.exit()) continue;
    console += guest->console();
    guest = std::make_unique<DeterministicGuest>(config, *guest);
  }
  EXPECT_GT(pauses, 4);
  EXPECT_EQ(console + guest->console(), reference.console());
}

TEST_F(Deterministic, AGuestThatWaitsIsPausedAtOnce) {
  DeterministicGuest guest({.kernel = "idle", .command_line = "ticks=1 period_ms=3600000"});
  guest.machine().resume();
  EXPECT_EQ(guest.machine().wait_for_exit(50ms), std::nullopt);
  for (int i = 0; i < 100; ++i) {
    guest.machine().pause();
    guest.machine().resume();
  }
  guest.machine().request_exit();
  EXPECT_EQ(guest.machine().wait_for_exit(10s)->reason, vmm::ExitReason::kRequested);
  guest.machine().pause();
  EXPECT_TRUE(guest.machine().first_entry().has_value());
  EXPECT_NO_THROW((void)guest.machine().save());
}

TEST_F(Deterministic, AGuestWithoutTheCounterEndsWhenItIsPaused) {
  DeterministicGuestConfig config{.kernel = "compute_uncounted", .command_line = "rounds=1000000"};
  config.options.longest_epoch = 200ms;
  DeterministicGuest guest(config);
  guest.record({1'000}, 1);  // what the runtime does before main is an epoch of its own in any guest
  std::optional<vmm::MachineExit> exit;
  const bool ended = eventually([&] {
    guest.machine().resume();
    guest.machine().pause();  // perhaps before it ran at all
    return (exit = guest.machine().wait_for_exit(0ms)).has_value();
  });
  ASSERT_TRUE(ended);
  EXPECT_EQ(exit->reason, vmm::ExitReason::kCrash);
  EXPECT_EQ(exit->detail, "the guest does not end its epochs");
  EXPECT_NO_THROW((void)guest.machine().save());
}

class DirtyTracking : public Deterministic, public ::testing::WithParamInterface<vmm::DirtyLog> {};

// A copy that gets the pages told as written is equal at every pause, whether epochs ran freely or were recorded.
TEST_P(DirtyTracking, TellsEveryPageThatChanged) {
  DeterministicGuestConfig config = memory_writer("pages=800 rounds=10000000");
  config.options.dirty_log = GetParam();
  config.options.epoch_length = {5'000};
  DeterministicGuest guest(config);
  vmm::DeterministicMachine& machine = guest.machine();
  machine.start_dirty_tracking();
  const auto copy = copy_of(machine.memory());
  std::size_t told = 0;
  for (int round = 0; round < 20; ++round) {
    machine.resume();
    (void)machine.wait_for_exit(2ms);
    machine.pause();
    if (round % 2 == 0) guest.record({1'000}, 3);
    const std::vector<vmm::Gfn> dirty = machine.harvest_dirty_pages();
    EXPECT_TRUE(std::is_sorted(dirty.begin(), dirty.end()));
    for (const vmm::Gfn gfn : dirty) {
      const auto page = machine.memory().page(gfn);
      std::copy(page.begin(), page.end(), copy->writable_page(gfn).begin());
    }
    told += dirty.size();
    ASSERT_EQ(first_difference(machine.memory(), *copy), std::nullopt) << "round " << round;
  }
  EXPECT_GT(told, 0u);
  ASSERT_FALSE(machine.exit()) << "the guest is too short for this test";
  machine.stop_dirty_tracking();
  // Digests are right after all that: a restored machine does the same.
  const RecordedRun run = [&] {
    DeterministicGuest other(config, guest);
    return other.record({1'000}, 20);
  }();
  EXPECT_EQ(guest.replay(run), "");
}

INSTANTIATE_TEST_SUITE_P(Logs, DirtyTracking, ::testing::Values(vmm::DirtyLog::kRing, vmm::DirtyLog::kBitmap),
                         [](const auto& log) { return log.param == vmm::DirtyLog::kRing ? "ring" : "bitmap"; });

// --- Its processor ---

// What is in these tables is tested in tests/unit/deterministic/cpuid_test.cc; this is that the machine has them, in its
// whole life.
TEST_F(Deterministic, ItsProcessorHasNoRandomNumbersAndTimeStampsOnlyForTheKernel) {
  DeterministicGuest guest(memory_writer("rounds=100000000"));
  for (int i = 0; i < 3; ++i) {  // before its first instruction, too
    const Bytes bytes = guest.machine().save();
    vmm::ReceivedMessage message("state", bytes);
    message.read<vmm::schema::DeterministicState>([](vmm::schema::DeterministicState::Reader state) {
      const auto bit = [table = vmm::read_cpuid(state.getCpuid())](std::uint32_t leaf, auto word, unsigned number) {
        const auto entry = std::ranges::find(table, leaf, &kvm_cpuid_entry2::function);
        return entry != table.end() && ((*entry).*word >> number & 1) != 0;
      };
      EXPECT_TRUE(bit(1, &kvm_cpuid_entry2::edx, 26)) << "SSE2, which is there";
      EXPECT_FALSE(bit(1, &kvm_cpuid_entry2::ecx, 30)) << "RDRAND";
      EXPECT_FALSE(bit(7, &kvm_cpuid_entry2::ebx, 18)) << "RDSEED";
      EXPECT_FALSE(bit(1, &kvm_cpuid_entry2::ecx, 24)) << "TSC deadline";
      constexpr std::uint64_t kTimeStampDisable = 1 << 2;
      EXPECT_NE(vmm::read_vcpu(state.getVcpu()).system_registers.cr4 & kTimeStampDisable, 0u);
    });
    guest.record({1'000}, 5);
  }
}

// --- Hostile bytes ---

TEST_F(Deterministic, DamagedStatesAreRefusedAndNeverCrash) {
  DeterministicGuest guest(disk_check());
  (void)guest.record({3'001}, 200);
  const Bytes state = guest.machine().save();
  std::mt19937_64 random(17);
  std::size_t refused = 0;
  for (int i = 0; i < 300; ++i) {
    Bytes damaged = state;
    for (std::uint64_t flips = 1 + random() % 8; flips > 0; --flips) {
      damaged[random() % damaged.size()] ^= static_cast<std::byte>(1 + random() % 255);
    }
    if (i % 5 == 0) damaged.resize(random() % damaged.size());
    try {
      DeterministicGuest restored(disk_check(), damaged, copy_of(guest.machine().memory()));
    } catch (const Error&) {
      ++refused;
    }
  }
  EXPECT_GT(refused, 50u);
}

}  // namespace
}  // namespace pollux::testing
