// Guests, their runtime and the counter, on the deterministic machine.
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>
#include <cstring>
#include <thread>

#include "tests/guests/lockstep/kv_protocol.h"
#include "tests/support/client_frames.h"
#include "tests/support/deterministic_guest.h"
#include "tests/support/test_machine.h"
#include "vmm/guest/abi.h"

namespace pollux::testing {
namespace {

using ::testing::HasSubstr;
using ::testing::StartsWith;

class GuestRuntime : public ::testing::Test {
 protected:
  void SetUp() override {
    if (const std::string why = why_no_kvm(); !why.empty()) GTEST_SKIP() << why;
  }

  // Two runs of a guest that takes no input are the same run.
  static DeterministicGuestConfig guest(const char* name, const std::string& command_line = "") {
    DeterministicGuestConfig config;
    config.kernel = name;
    config.command_line = command_line;
    config.memory_bytes = std::uint64_t{32} << 20;
    config.clock = GuestClock::kMadeUp;
    config.options.disks = vmm::DiskMode::kAtEpochEnd;
    return config;
  }
  struct Result : RecordedRun {
    std::string console;
  };
  static Result run(DeterministicGuest& guest, vmm::EpochLength length = {1'000'000}) {
    Result result{guest.record(length), {}};
    result.console = guest.console();
    return result;
  }
  static Result run(const DeterministicGuestConfig& config, vmm::EpochLength length = {1'000'000}) {
    DeterministicGuest guest(config);
    return run(guest, length);
  }
  static void expect_success(const Result& result) {
    EXPECT_TRUE(result.ended()) << result.exit->detail << "\n" << result.console;
  }
  static std::string failure(std::uint32_t code) { return fmt::format("the guest failed with code {:#x}", code); }
};

// --- The counter ---

TEST_F(GuestRuntime, ComputesTheSameWhateverTheEpochs) {
  std::string console;
  std::uint64_t sites = 0;
  for (const std::uint64_t length : {1'000u, 10'007u, 1'000'000u}) {
    const Result result = run(guest("compute"), {length});
    expect_success(result);
    EXPECT_THAT(result.console, HasSubstr("pointer_chase 0x"));
    if (console.empty()) console = result.console;
    EXPECT_EQ(result.console, console);
    // An epoch has length + 1 sites, and every run as many in all, but for the last, unfinished one, and for
    // what device accesses and copies take beyond the end of one.
    const std::uint64_t passed = (result.epochs.size() - 1) * (length + 1);
    if (sites == 0) sites = passed;
    EXPECT_NEAR(static_cast<double>(passed), static_cast<double>(sites),
                0.05 * static_cast<double>(sites) + static_cast<double>(length));
  }
  // Not the optimizer's doing either.
  EXPECT_EQ(run(guest("compute_o3")).console, console);
  EXPECT_EQ(run(guest("compute_rolled")).console, console);
}

TEST_F(GuestRuntime, EndsEveryEpochInTheSameState) {
  const Result first = run(guest("compute"), {1'009}), second = run(guest("compute"), {1'009});
  expect_success(first);
  EXPECT_GT(first.epochs.size(), 1'000u);
  EXPECT_EQ(first.digests, second.digests);
  EXPECT_NE(run(guest("compute", "rounds=2"), {1'009}).digest(), first.digest());
}

TEST_F(GuestRuntime, AnEpochMayEndAtEverySite) {
  const DeterministicGuestConfig config = guest("memory_writer", "pages=64 rounds=5");
  const Result result = run(config, {0});
  expect_success(result);
  EXPECT_EQ(result.console, run(config).console);
  EXPECT_GT(result.epochs.size(), 4'000u);
}

TEST_F(GuestRuntime, CountsInControlFlowOfEveryShape) {
  const std::string console = run(guest("shapes"), {100'000}).console;
  EXPECT_THAT(console, HasSubstr("virtual_calls "));
  const Result result = run(guest("shapes"), {7}), again = run(guest("shapes"), {7});
  expect_success(result);
  EXPECT_EQ(result.console, console);
  EXPECT_EQ(result.digests, again.digests);
}

TEST_F(GuestRuntime, KeepsItsPromises) {
  const Result result = run(guest("runtime_check", "first=1 text=abc number=42 last="), {50'000});
  expect_success(result);
  EXPECT_EQ(result.console,
            "0 -1 18446744073709551615 -9223372036854775808 0xdeadbeef 0x0 x text\nruntime_check done\n");
}

// --- Time ---

TEST_F(GuestRuntime, SleepsUntilItsTimerIsDue) {
  DeterministicGuestConfig config = guest("idle", "ticks=5 period_ms=50");
  config.clock = GuestClock::kHost;
  const Result result = run(config);
  expect_success(result);
  EXPECT_EQ(result.console, "tick 1\ntick 2\ntick 3\ntick 4\ntick 5\n");
  const auto waited = [](const vmm::EpochEnd& end) { return end.inputs.boundary == vmm::EpochBoundary::kWaited; };
  EXPECT_GE(std::count_if(result.epochs.begin(), result.epochs.end(), waited), 5);
}

TEST_F(GuestRuntime, WritesMemory) {
  const DeterministicGuestConfig config = guest("memory_writer", "pages=500 rounds=20 pause_ms=3");
  const Result first = run(config), second = run(config);
  expect_success(first);
  EXPECT_EQ(first.console, second.console);
  EXPECT_EQ(first.digests, second.digests);
}

// --- Failures ---

struct Misdeed {
  const char* what;
  std::uint32_t exit_code;
  const char* console;
};

class GuestFailure : public GuestRuntime, public ::testing::WithParamInterface<Misdeed> {};

TEST_P(GuestFailure, IsReported) {
  const Result result = run(guest("misbehave", std::string("what=") + GetParam().what));
  EXPECT_EQ(result.exit->reason, vmm::ExitReason::kPowerOff);
  EXPECT_EQ(result.exit->detail, failure(GetParam().exit_code));
  EXPECT_THAT(result.console, StartsWith(GetParam().console));
}

INSTANTIATE_TEST_SUITE_P(
    All, GuestFailure,
    ::testing::Values(
        Misdeed{"null", guest_abi::kExitException + 14, "guest exception 14 error 0x4 at 0x2"},
        Misdeed{"undefined", guest_abi::kExitException + 6, "guest exception 6 error 0x0 at 0x2"},
        Misdeed{"divide", guest_abi::kExitException + 0, "guest exception 0 error 0x0 at 0x2"},
        Misdeed{"stack", guest_abi::kExitException + 14, "guest exception 14 error 0x6 at 0x2"},
        Misdeed{"privileged", guest_abi::kExitException + 13, "guest exception 13 error 0x0 at 0x2"},
        Misdeed{"panic", guest_abi::kExitPanic, "guest panic: asked to\n"}),
    [](const auto& misdeed) { return std::string(misdeed.param.what); });

TEST_F(GuestRuntime, ReadingTheTimeStampCounterShows) {
  const Result first = run(guest("misbehave", "what=rdtsc"), {1'000}), second = run(guest("misbehave", "what=rdtsc"), {1'000});
  if (first.ended()) {
    EXPECT_NE(first.digests, second.digests);
  } else {
    EXPECT_EQ(first.exit->detail, failure(guest_abi::kExitException + 13));  // CR4.TSD
  }
}

// --- Disks ---

TEST_F(GuestRuntime, WritesAndReadsADisk) {
  DeterministicGuestConfig config = guest("disk_check", "blocks=200 rounds=2");
  config.disks = {1 << 20};
  DeterministicGuest writer(config);
  const Result result = run(writer);
  expect_success(result);
  EXPECT_THAT(result.console, HasSubstr("disk_check done, repeated 0\n"));
  EXPECT_EQ(run(config).digests, result.digests);

  config.command_line += " verify=1";
  DeterministicGuest other(config);
  other.disk(0) = writer.disk(0);
  expect_success(run(other));
  DeterministicGuest damaged(config);
  damaged.disk(0) = writer.disk(0);
  damaged.disk(0)[100'000] ^= std::byte{1};
  EXPECT_EQ(run(damaged).exit->detail, failure(guest_abi::kExitPanic));
}

TEST_F(GuestRuntime, RefusesADiskThatIsTooSmall) {
  DeterministicGuestConfig config = guest("disk_check", "blocks=2000");
  config.disks = {1 << 20};
  EXPECT_THAT(run(config).console, HasSubstr("guest panic: disk too small"));
  config.disks.clear();
  EXPECT_THAT(run(config).console, HasSubstr("guest panic: no such virtio device"));
}

// --- Networks ---

class KvServer : public GuestRuntime {
 protected:
  static DeterministicGuestConfig server(unsigned requests) {
    DeterministicGuestConfig config = guest("kv_server", "ip=10.0.0.2 requests=" + std::to_string(requests));
    config.nics = 1;
    return config;
  }
  static DeterministicGuestConfig server_with_journal(const Bytes& disk, unsigned requests = 1) {
    DeterministicGuestConfig config = server(requests);
    config.command_line += " journal=1";
    config.disks = {disk.size()};
    return config;
  }
  // Until the guest has had so many requests; keeps what it answered. With a disk it has its journal there.
  Result serve(const std::vector<Bytes>& frames, unsigned requests, vmm::EpochLength length = {100'000}, Bytes* disk = nullptr) {
    DeterministicGuest guest(disk == nullptr ? server(requests) : server_with_journal(*disk, requests));
    if (disk != nullptr) guest.disk(0) = *disk;
    std::thread client([&] {
      // A NIC whose driver is not up takes no frames.
      if (!eventually([&] { return guest.console().find("kv_server ready") != std::string::npos; })) return;
      // As many as a NIC keeps for a driver that is busy: more would be lost, and nobody sends them again here.
      constexpr std::size_t kUnanswered = 64;
      for (std::size_t i = 0; i < frames.size(); ++i) {
        if (i >= kUnanswered && !eventually([&] { return guest.frames_sent().size() + kUnanswered > i + 1; })) return;
        guest.send_frame(frames[i]);
      }
    });
    const Result result = run(guest, length);
    client.join();
    if (disk != nullptr) *disk = guest.disk(0);
    answers_ = guest.frames_sent();
    EXPECT_EQ(get16(answers_.at(0), 12), 0x0806) << "it announces itself";
    EXPECT_EQ(std::memcmp(answers_[0].data() + 28, answers_[0].data() + 38, 4), 0);
    answers_.erase(answers_.begin());
    return result;
  }

  guests::KvResponse response(std::size_t index) {
    guests::KvResponse r{};
    const Bytes& frame = answers_.at(index);
    EXPECT_EQ(frame.size(), kPayload + sizeof r);
    EXPECT_EQ(internet_checksum(ByteView(frame).subspan(kIp, 20)), 0);
    EXPECT_EQ(udp_checksum(frame), 0);
    EXPECT_EQ(std::memcmp(frame.data(), kClientMac.data(), 6), 0);
    EXPECT_EQ(get16(frame, kUdp + 2), 5'555);
    std::memcpy(&r, frame.data() + kPayload, sizeof r);
    return r;
  }
  static std::string value(const guests::KvResponse& r) {
    return {reinterpret_cast<const char*>(r.value), r.value_bytes};
  }

  std::vector<Bytes> answers_;
};

TEST_F(KvServer, AnswersArpAndPings) {
  Bytes ping = ipv4_frame(1, 8 + 56);
  ping[kUdp] = std::byte{8};
  put16(ping, kUdp + 4, 77);
  put16(ping, kUdp + 2, internet_checksum(ByteView(ping).subspan(kUdp)));
  const auto get = kv_request(guests::KvOperation::kGet, 1, 1, "nothing");
  const Result result = serve({arp_request(), ping, udp_frame(bytes_of(get))}, 1);
  expect_success(result);
  ASSERT_EQ(answers_.size(), 3u);
  EXPECT_EQ(get16(answers_[0], 20), 2);  // ARP reply
  EXPECT_EQ(std::memcmp(answers_[0].data() + 22, kGuestMac.data(), 6), 0);
  EXPECT_EQ(std::memcmp(answers_[0].data() + 28, kGuestIp.data(), 4), 0);
  EXPECT_EQ(answers_[1][kUdp], std::byte{0});
  EXPECT_EQ(get16(answers_[1], kUdp + 4), 77);
  EXPECT_EQ(internet_checksum(ByteView(answers_[1]).subspan(kUdp)), 0);
  EXPECT_EQ(response(2).status, guests::KvStatus::kMissing);
}

TEST_F(KvServer, CarriesOutEachRequestOnce) {
  using guests::KvOperation;
  std::vector<Bytes> frames;
  const auto add = [&](const guests::KvRequest& r) { frames.push_back(udp_frame(bytes_of(r))); };
  add(kv_request(KvOperation::kPut, 7, 1, "name", "pollux"));
  add(kv_request(KvOperation::kGet, 7, 2, "name"));
  add(kv_request(KvOperation::kIncrement, 7, 3, "count"));
  add(kv_request(KvOperation::kIncrement, 7, 3, "count"));  // sent twice
  add(kv_request(KvOperation::kIncrement, 8, 1, "count"));
  add(kv_request(KvOperation::kGet, 7, 2, "name"));  // late
  add(kv_request(KvOperation::kIncrement, 7, 4, "name"));
  Bytes damaged = udp_frame(bytes_of(kv_request(KvOperation::kPut, 7, 5, "name", "castor")));
  damaged[kPayload + 40] ^= std::byte{1};
  frames.push_back(damaged);
  add(kv_request(KvOperation::kGet, 7, 6, "name"));
  const Result result = serve(frames, 8);
  expect_success(result);
  ASSERT_EQ(answers_.size(), 8u);
  EXPECT_EQ(response(0).status, guests::KvStatus::kOk);
  EXPECT_EQ(value(response(1)), "pollux");
  EXPECT_EQ(response(2).value[0], 1);
  EXPECT_EQ(response(3).value[0], 1);
  EXPECT_EQ(response(4).value[0], 2);
  EXPECT_EQ(response(5).status, guests::KvStatus::kOld);
  EXPECT_EQ(response(6).status, guests::KvStatus::kBad);
  EXPECT_EQ(value(response(7)), "pollux");
}

// Booted from the journal of a server that is gone.
class KvJournal : public KvServer {
 protected:
  static constexpr std::size_t kSector = 512;

  static Bytes ask(guests::KvOperation operation, std::uint64_t client, std::uint64_t sequence, const std::string& key,
                   const std::string& value = "") {
    return udp_frame(bytes_of(kv_request(operation, client, sequence, key, value)));
  }
  // Of client 8, from 1 on: record n has the value n.
  void count_to(std::uint64_t last) {
    std::vector<Bytes> frames;
    for (std::uint64_t i = 1; i <= last; ++i) frames.push_back(ask(guests::KvOperation::kIncrement, 8, i, "count"));
    expect_success(serve_on_disk(frames));
  }
  Result serve_on_disk(const std::vector<Bytes>& frames) {
    return serve(frames, static_cast<unsigned>(frames.size()), {100'000}, &disk_);
  }
  void damage(std::uint64_t record) { disk_[(record - 1) * kSector + 20] ^= std::byte{1}; }
  std::uint64_t number(std::size_t index) {
    std::uint64_t value = 0;
    std::memcpy(&value, response(index).value, sizeof value);
    return value;
  }

  Bytes disk_ = Bytes(32 * kSector, std::byte{0x5a});
};

TEST_F(KvJournal, GoesOnWhereTheLastServerEnded) {
  using guests::KvOperation;
  count_to(40);  // more than the disk has room for
  expect_success(serve_on_disk({ask(KvOperation::kPut, 7, 1, "name", "pollux")}));
  expect_success(serve_on_disk({ask(KvOperation::kIncrement, 8, 40, "count"), ask(KvOperation::kGet, 9, 1, "name"),
                                ask(KvOperation::kIncrement, 8, 41, "count"), ask(KvOperation::kPut, 7, 1, "name", "pollux")}));
  ASSERT_EQ(answers_.size(), 4u);
  EXPECT_EQ(number(0), 40u);  // what it was told before
  EXPECT_EQ(value(response(1)), "pollux");
  EXPECT_EQ(number(2), 41u);
  EXPECT_EQ(response(3).status, guests::KvStatus::kOk);
}

TEST_F(KvJournal, OfTheLastBatchNothingBehindAGapIsKept) {
  using guests::KvOperation;
  count_to(20);
  damage(18);
  expect_success(serve_on_disk({ask(KvOperation::kGet, 9, 1, "count"), ask(KvOperation::kIncrement, 8, 18, "count")}));
  EXPECT_EQ(number(0), 17u);
  EXPECT_EQ(number(1), 18u);
  // Not 19 and 20, which lay there behind the gap.
  expect_success(serve_on_disk({ask(KvOperation::kGet, 9, 2, "count")}));
  EXPECT_EQ(number(0), 18u);
}

TEST_F(KvJournal, AGapThatNoCrashLeavesIsAnError) {
  count_to(30);
  damage(3);
  DeterministicGuest guest(server_with_journal(disk_));
  guest.disk(0) = disk_;
  const Result result = run(guest);
  ASSERT_TRUE(result.exit);
  EXPECT_EQ(result.exit->detail, failure(guest_abi::kExitPanic));
  EXPECT_THAT(result.console, HasSubstr("journal: a record is missing"));
}

TEST_F(KvServer, GoesThroughTheSameStatesAgain) {
  std::vector<Bytes> frames;
  for (unsigned i = 1; i <= 400; ++i) {
    frames.push_back(
        udp_frame(bytes_of(kv_request(guests::KvOperation::kIncrement, 1, i, "key" + std::to_string(i % 37)))));
  }
  const Result first = serve(frames, 400, {997});
  expect_success(first);
  EXPECT_EQ(answers_.size(), 400u);
  DeterministicGuest second(server(400));
  EXPECT_EQ(second.replay(first), "");
  std::vector<Bytes> again = second.frames_sent();
  again.erase(again.begin());
  EXPECT_EQ(answers_, again);
}

}  // namespace
}  // namespace pollux::testing
