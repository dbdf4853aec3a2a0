// Replication between two processes on the real /dev/kvm, seen from outside: the primary is killed with SIGKILL, and
// the computation that it was in the middle of must end on the backup with the result of an undisturbed run. Every
// step of it depends on all steps before: one lost, repeated or torn page changes the result.
#include <gtest/gtest.h>
#include <signal.h>
#include <spdlog/spdlog.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <filesystem>
#include <functional>
#include <future>
#include <random>
#include <thread>
#include <utility>
#include <vector>

#include "backup/backup.h"
#include "base/error.h"
#include "primary/primary.h"
#include "protocol/session/keys.h"
#include "tests/support/test_machine.h"
#include "vmm/make_machine.h"

namespace pollux::testing {
namespace {

using namespace std::chrono_literals;
using guests::WriterMode;

constexpr std::uint64_t kMemoryMib = 64;
constexpr std::uint64_t kPages = 2000;
constexpr std::uint64_t kSeed = 7;

// The program of replicated_writer.cc as a child process.
class WriterProcess {
 public:
  WriterProcess(const std::vector<std::uint16_t>& backup_ports, const std::string& key, const std::string& peer_key) {
    std::string ports;
    for (const std::uint16_t port : backup_ports) ports += (ports.empty() ? "" : ",") + std::to_string(port);
    std::array<int, 2> pipe{};
    POLLUX_ASSERT(::pipe(pipe.data()) == 0);
    pid_ = ::fork();
    POLLUX_ASSERT(pid_ >= 0);
    if (pid_ == 0) {
      ::dup2(pipe[1], STDOUT_FILENO);
      ::close(pipe[0]);
      ::close(pipe[1]);
      ::execl(POLLUX_REPLICATED_WRITER, "replicated_writer", ports.c_str(), key.c_str(), peer_key.c_str(),
              std::to_string(kMemoryMib).c_str(), std::to_string(kPages).c_str(), std::to_string(kSeed).c_str(), nullptr);
      ::_exit(127);
    }
    ::close(pipe[1]);
    output_ = ::fdopen(pipe[0], "r");
  }
  ~WriterProcess() {
    kill();
    std::fclose(output_);
  }

  // The next line it prints must be this one.
  bool wait_for(const std::string& expected) {
    char line[64];
    return std::fgets(line, sizeof line, output_) != nullptr && line == expected;
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

// What becomes of a promoted machine: it runs, unprotected, until `use` returns.
void run_promoted(backup::Promotion promotion, vmm::Backends& backends, const std::function<void(vmm::Machine&)>& use) {
  vmm::PassThroughInput input;
  vmm::PassThroughOutput gate(backends);
  backup::PromotedOutput output(gate);
  const auto machine = promotion.restore(backends, input, output);
  machine->resume();
  use(*machine);
  machine->pause();
}

class Replication : public ::testing::Test {
 protected:
  void SetUp() override {
    if (const std::string why = why_no_kvm(); !why.empty()) GTEST_SKIP() << why;
    // Made at its first use: before there are threads, as the command line does it too.
    spdlog::set_level(spdlog::level::warn);
    protocol::session::initialize_crypto();
    char path[] = "/tmp/pollux-replication-XXXXXX";
    ASSERT_NE(::mkdtemp(path), nullptr);
    folder_ = path;
    write_key_pair(folder_ + "/a", protocol::session::SecretKey::generate());
    write_key_pair(folder_ + "/b", protocol::session::SecretKey::generate());
  }
  void TearDown() override {
    if (!folder_.empty()) std::filesystem::remove_all(folder_);
  }

  // The promoted machine ends the computation that it is in the middle of, as one would that nothing happened to.
  static void expect_undisturbed_end(backup::Promotion promotion, vmm::Backends& backends) {
    std::uint64_t steps = 0, checksum = 0;
    run_promoted(std::move(promotion), backends, [&](vmm::Machine& machine) {
      PageWriter writer(machine.memory());
      EXPECT_FALSE(writer.served());
      const std::uint64_t rounds = writer.rounds();
      EXPECT_TRUE(eventually([&] { return writer.rounds() > rounds; }));
      writer.finish();
      EXPECT_TRUE(writer.wait_until_served());
      steps = writer.steps();
      checksum = writer.checksum();
    });
    EXPECT_EQ(checksum, undisturbed_checksum(kMemoryMib << 20, kPages, kSeed, steps)) << steps << " steps";
  }

  backup::BackupOptions backup_options() const {
    backup::BackupOptions options;
    options.listen = protocol::Address{"127.0.0.1", 0};
    options.primary_keys = {protocol::session::load_public_key(folder_ + "/a.pub")};
    options.silence_timeout = 20s;
    return options;
  }

  std::string folder_;
};

#ifdef __SANITIZE_THREAD__
constexpr int kRounds = 2;
#else
constexpr int kRounds = 4;
#endif

TEST_F(Replication, KilledAtRandomMomentsTheComputationEndsAsIfNothingHadHappened) {
  const auto key = protocol::session::load_secret_key(folder_ + "/b");
  std::mt19937_64 random(11);
  for (int round = 0; round < kRounds; ++round) {
    SCOPED_TRACE(round);
    backup::Backup backup(backup_options(), key);
    const auto backends = no_backends();
    auto end = std::async(std::launch::async, [&] { return backup.run(*backends); });
    WriterProcess primary({backup.port()}, folder_ + "/a", folder_ + "/b.pub");
    const bool is_protected = primary.wait_for("protected\n");
    if (!is_protected) backup.stop();
    ASSERT_TRUE(is_protected);
    std::this_thread::sleep_for(std::chrono::milliseconds(random() % 150));  // the random moment
    primary.kill();
    backup::BackupEnd result = end.get();
    ASSERT_TRUE(result.promotion.has_value()) << result.reason;
    expect_undisturbed_end(std::move(*result.promotion), *backends);
  }
}

// A backup that is killed is dropped; the guest goes on, protected by the other, which can still take over.
TEST_F(Replication, OfTwoBackupsOneMayDie) {
  const auto key = protocol::session::load_secret_key(folder_ + "/b");
  backup::Backup survivor(backup_options(), key);
  backup::Backup leaver(backup_options(), key);
  const auto survivor_backends = no_backends();
  const auto leaver_backends = no_backends();
  auto survivor_end = std::async(std::launch::async, [&] { return survivor.run(*survivor_backends); });
  auto leaver_end = std::async(std::launch::async, [&] { return leaver.run(*leaver_backends); });
  WriterProcess primary({survivor.port(), leaver.port()}, folder_ + "/a", folder_ + "/b.pub");
  const bool is_protected = primary.wait_for("protected\n");
  EXPECT_TRUE(is_protected);
  leaver.stop();
  EXPECT_FALSE(leaver_end.get().failed);
  EXPECT_TRUE(primary.wait_for("committed without a backup\n"));
  primary.kill();
  if (!is_protected) survivor.stop();
  backup::BackupEnd result = survivor_end.get();
  ASSERT_TRUE(result.promotion.has_value()) << result.reason;
  expect_undisturbed_end(std::move(*result.promotion), *survivor_backends);
}

// A page of the guest's memory fails under the primary: it must not say goodbye, and the backup goes on.
TEST_F(Replication, ABackupTakesOverFromAHostWhoseKvmFails) {
  const auto key = protocol::session::load_secret_key(folder_ + "/b");
  backup::Backup backup(backup_options(), key);
  const auto backup_backends = no_backends();
  auto end = std::async(std::launch::async, [&] { return backup.run(*backup_backends); });

  primary::PrimaryOptions primary_options;
  primary_options.backups.push_back({{"127.0.0.1", backup.port()}, key.public_key()});
  primary_options.silence_timeout = 20s;
  primary::Primary primary(primary_options);
  const auto backends = no_backends();
  vmm::PassThroughInput input;
  std::thread saboteur;
  const auto make_machine = [&](vmm::OutputGate& output) {
    auto machine = vmm::boot_machine(page_writer_config(kMemoryMib << 20), page_writer_source(), *backends, input, output);
    saboteur = std::thread([&memory = std::as_const(machine->memory()), &primary] {
      EXPECT_TRUE(eventually([&] { return primary.statistics().summary().committed.value > 0; }));
      take_away_page(memory, vmm::GuestAddress{guests::kArenaAddress} + 5 * kPageSize);
      guests::WriterControl* control = writer_control(memory);
      // The machine may be gone as soon as the guest obeys. What was done above comes before that, by this mutex.
      (void)primary.statistics().summary();
      __atomic_store_n(&control->mode, static_cast<std::uint64_t>(WriterMode::kCycle), __ATOMIC_RELAXED);
      __atomic_store_n(&control->pages, 10, __ATOMIC_RELAXED);
      __atomic_store_n(&control->request, 1, __ATOMIC_RELEASE);
    });
    return machine;
  };
  const auto own_key = protocol::session::load_secret_key(folder_ + "/a");
  EXPECT_THROW((void)primary.run(own_key, *backends, make_machine), Error);
  saboteur.join();
  backup::BackupEnd result = end.get();
  ASSERT_TRUE(result.promotion.has_value()) << result.reason;
  run_promoted(std::move(*result.promotion), *backup_backends, [&](vmm::Machine& machine) {
    PageWriter writer(machine.memory());
    writer.request(WriterMode::kTouch, kPages, kSeed);
    EXPECT_TRUE(writer.wait_until_served());
  });
}

TEST_F(Replication, AStrangerIsTurnedAwayAndTheBackupGoesOnWaiting) {
  write_key_pair(folder_ + "/c", protocol::session::SecretKey::generate());
  const auto key = protocol::session::load_secret_key(folder_ + "/b");
  backup::Backup backup(backup_options(), key);
  const auto backends = no_backends();
  auto end = std::async(std::launch::async, [&] { return backup.run(*backends); });
  const auto stranger = protocol::session::load_secret_key(folder_ + "/c");
  const auto peer = protocol::session::load_public_key(folder_ + "/b.pub");
  EXPECT_THROW((void)protocol::Link::connect({"127.0.0.1", backup.port()}, stranger, peer), protocol::LinkError);
  EXPECT_EQ(end.wait_for(0s), std::future_status::timeout);
  backup.stop();
  EXPECT_FALSE(end.get().failed);
}

}  // namespace
}  // namespace pollux::testing
