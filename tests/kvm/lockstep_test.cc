// Lockstep on the real /dev/kvm: a backup that executes the primary's epochs. Primaries that are to be killed are
// processes of their own (the pollux command); everything else is in this one.
//
// memory_writer's checksum depends on every step before it: a step lost or repeated on the way changes it.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <fcntl.h>
#include <spdlog/sinks/ringbuffer_sink.h>
#include <spdlog/spdlog.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cstdio>
#include <fstream>
#include <functional>
#include <future>
#include <map>
#include <mutex>
#include <random>
#include <sstream>
#include <thread>

#include "backup/backup.h"
#include "backup/lockstep_replica.h"
#include "base/error.h"
#include "primary/primary.h"
#include "protocol/session/keys.h"
#include "tests/support/deterministic_guest.h"
#include "tests/support/temporary_folder.h"
#include "tests/support/test_machine.h"
#include "vmm/make_machine.h"

namespace pollux::testing {
namespace {

using namespace std::chrono_literals;
using ::testing::HasSubstr;

constexpr std::uint64_t kMemoryMib = 16;
// ThreadSanitizer slows the full sync down, but not the guest, which must have the most of its work still before it then.
#ifdef __SANITIZE_THREAD__
constexpr std::uint64_t kWork = 4;
constexpr int kKills = 1;
#else
constexpr std::uint64_t kWork = 1;
constexpr int kKills = 3;
#endif

// Keeps what is written.
class Screen final : public vmm::ConsolePort {
 public:
  struct Text {
    std::mutex mutex;
    std::string text;
    std::string get() {
      const std::lock_guard lock(mutex);
      return text;
    }
  };
  explicit Screen(std::shared_ptr<Text> text) : text_(std::move(text)) {}
  int poll_fd() const override { return -1; }
  Bytes read() override { return {}; }
  void write(ByteView bytes) override {
    const std::lock_guard lock(text_->mutex);
    text_->text.append(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  }

 private:
  std::shared_ptr<Text> text_;
};

// A host's side of a machine: a screen and perhaps a disk image.
struct Host {
  explicit Host(const std::string& disk = {}) {
    std::vector<std::unique_ptr<vmm::Image>> disks;
    if (!disk.empty()) disks.push_back(std::make_unique<vmm::Image>(disk, false));
    backends = std::make_unique<vmm::Backends>(std::move(disks), std::vector<std::unique_ptr<vmm::Nic>>{},
                                               std::make_unique<Screen>(screen), std::make_unique<Screen>(screen));
  }
  std::shared_ptr<Screen::Text> screen = std::make_shared<Screen::Text>();
  std::unique_ptr<vmm::Backends> backends;
};

// The pollux command as a child process.
class Process {
 public:
  explicit Process(std::vector<std::string> words) {
    words.insert(words.begin(), POLLUX_BIN);
    std::vector<char*> argv;
    for (std::string& word : words) argv.push_back(word.data());
    argv.push_back(nullptr);
    std::array<int, 2> pipe{};
    POLLUX_ASSERT(::pipe(pipe.data()) == 0);
    pid_ = ::fork();
    POLLUX_ASSERT(pid_ >= 0);
    if (pid_ == 0) {
      ::dup2(pipe[1], STDERR_FILENO);
      ::close(pipe[0]);
      ::close(pipe[1]);
      ::execv(argv[0], argv.data());
      ::_exit(127);
    }
    ::close(pipe[1]);
    log_ = ::fdopen(pipe[0], "r");
  }
  ~Process() {
    kill();
    std::fclose(log_);
  }
  Process(const Process&) = delete;
  Process& operator=(const Process&) = delete;

  [[nodiscard]] pid_t pid() const { return pid_; }
  // Its log up to a line with these words; false when it ends before.
  bool wait_for(const std::string& words) {
    char line[1024];
    while (std::fgets(line, sizeof line, log_) != nullptr) {
      said_ += line;
      if (std::string(line).find(words) != std::string::npos) return true;
    }
    return false;
  }
  // All that was read so far.
  [[nodiscard]] const std::string& said() const { return said_; }
  // To its end; its exit code.
  int wait() {
    while (wait_for("\n")) {
    }
    if (pid_ <= 0) return -1;
    int status = 0;
    ::waitpid(std::exchange(pid_, -1), &status, 0);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
  }
  void kill() {
    if (pid_ <= 0) return;
    ::kill(pid_, SIGKILL);
    ::waitpid(pid_, nullptr, 0);
    pid_ = -1;
  }

 private:
  pid_t pid_ = -1;
  FILE* log_ = nullptr;
  std::string said_;
};

std::vector<std::string> joined(std::vector<std::string> words, const std::vector<std::string>& more) {
  words.insert(words.end(), more.begin(), more.end());
  return words;
}

class PrimaryProcess : public Process {
 public:
  explicit PrimaryProcess(const std::vector<std::string>& arguments)
      : Process(joined({"primary", "--profile", "deterministic", "--strategy", "lockstep", "--memory",
                        std::to_string(kMemoryMib) + "M", "--arbiter", "none", "--timeout-ms", "20000"},
                       arguments)) {}
};

// The guest's memory in another process, without that one's knowledge.
class MemoryOf {
 public:
  // The only mapping of this size there that no child would get. It exists when the machine does.
  MemoryOf(const Process& process, std::uint64_t bytes) {
    const std::string folder = "/proc/" + std::to_string(process.pid());
    std::ifstream maps(folder + "/smaps");
    std::uint64_t begin = 0, end = 0;
    for (std::string line; std::getline(maps, line);) {
      unsigned long long a = 0, b = 0;
      if (std::sscanf(line.c_str(), "%llx-%llx ", &a, &b) == 2) begin = a, end = b;
      if (line.starts_with("VmFlags:") && line.find(" dc") != std::string::npos && end - begin == bytes) base_ = begin;
    }
    file_ = ::open((folder + "/mem").c_str(), O_RDWR | O_CLOEXEC);
    EXPECT_NE(base_, 0u) << "no such mapping";
    EXPECT_GE(file_, 0);
  }
  ~MemoryOf() { ::close(file_); }
  MemoryOf(const MemoryOf&) = delete;
  MemoryOf& operator=(const MemoryOf&) = delete;

  [[nodiscard]] Bytes read(std::uint64_t address, std::size_t bytes) const {
    Bytes into(bytes);
    EXPECT_EQ(::pread(file_, into.data(), bytes, static_cast<off_t>(base_ + address)), static_cast<ssize_t>(bytes));
    return into;
  }
  void write(std::uint64_t address, std::byte byte) const {
    EXPECT_EQ(::pwrite(file_, &byte, 1, static_cast<off_t>(base_ + address)), 1);
  }

 private:
  std::uint64_t base_ = 0;
  int file_ = -1;
};

// What is logged as a warning, while this lives.
class Warnings {
 public:
  Warnings() : sink_(std::make_shared<spdlog::sinks::ringbuffer_sink_mt>(1000)) {
    spdlog::default_logger()->sinks().push_back(sink_);
    spdlog::set_level(spdlog::level::warn);
  }
  ~Warnings() {
    spdlog::set_level(spdlog::level::err);
    spdlog::default_logger()->sinks().pop_back();
  }
  Warnings(const Warnings&) = delete;
  Warnings& operator=(const Warnings&) = delete;
  [[nodiscard]] std::string text() const {
    std::string all;
    for (const std::string& line : sink_->last_formatted()) all += line;
    return all;
  }

 private:
  std::shared_ptr<spdlog::sinks::ringbuffer_sink_mt> sink_;
};

vmm::MachineConfig machine_config(const vmm::Backends&, std::uint64_t memory_mib = kMemoryMib) {
  vmm::MachineConfig config;
  config.memory_bytes = memory_mib << 20;
  config.profile = vmm::MachineProfile::kDeterministic;
  return config;
}

class Lockstep : public ::testing::Test {
 protected:
  void SetUp() override {
    if (const std::string why = why_no_kvm(); !why.empty()) GTEST_SKIP() << why;
    spdlog::set_level(spdlog::level::err);
    protocol::session::initialize_crypto();
    write_key_pair(file("a"), protocol::session::SecretKey::generate());
    write_key_pair(file("b"), protocol::session::SecretKey::generate());
  }

  [[nodiscard]] std::string file(const std::string& name) const { return folder_.path_of(name); }
  [[nodiscard]] protocol::session::SecretKey key(const std::string& name) const {
    return protocol::session::load_secret_key(file(name));
  }

  // What the guest prints when nothing disturbs it.
  static std::string undisturbed(const std::string& guest, const std::string& command_line) {
    Host host;
    vmm::PassThroughInput input;
    vmm::PassThroughOutput output(*host.backends);
    const auto machine = vmm::boot_machine(machine_config(*host.backends), {guest_path(guest), {}, command_line},
                                           *host.backends, input, output);
    machine->resume();
    EXPECT_TRUE(machine->wait_for_exit(60s).has_value());
    machine->pause();
    return host.screen->get();
  }

  [[nodiscard]] backup::BackupOptions backup_options() const {
    backup::BackupOptions options;
    options.listen = protocol::Address{"127.0.0.1", 0};
    options.primary_keys = {protocol::session::load_public_key(file("a.pub"))};
    options.silence_timeout = 20s;
    return options;
  }

  [[nodiscard]] std::vector<std::string> primary_words(const std::vector<std::uint16_t>& ports, const std::string& guest,
                                                       const std::string& command_line) const {
    std::vector<std::string> words = {"--key",    file("a"), "--peer-key", file("b.pub"), "--kernel", guest_path(guest),
                                      "--cmdline", command_line, "--console", "file=" + file("console")};
    for (const std::uint16_t port : ports) {
      words.insert(words.end(), {"--backup", "127.0.0.1:" + std::to_string(port)});
    }
    return words;
  }

  // The promoted machine, unprotected, to its end; what it printed here.
  static std::string finish(backup::BackupEnd& end, Host& host) {
    EXPECT_TRUE(end.promotion.has_value()) << end.reason;
    if (!end.promotion) return {};
    EXPECT_TRUE(end.promotion->lockstep());
    vmm::PassThroughInput input;
    vmm::PassThroughOutput gate(*host.backends);
    backup::PromotedOutput output(gate);
    const auto machine = end.promotion->restore(*host.backends, input, output);
    EXPECT_FALSE(machine->first_entry().has_value());
    machine->resume();
    const auto exit = machine->wait_for_exit(100s);
    machine->pause();
    EXPECT_TRUE(exit && exit->reason == vmm::ExitReason::kPowerOff && exit->detail.empty())
        << (exit ? exit->detail : "it does not end");
    return host.screen->get();
  }

  // A primary in this process, with a backup for each of these, until its guest ends.
  struct Ends {
    primary::Summary summary;
    vmm::MachineExit exit;
    std::string screen;
    std::vector<backup::BackupEnd> backups;
  };
  Ends run_all(const std::string& guest, const std::string& command_line, primary::LockstepOptions lockstep,
               const std::vector<protocol::OnDivergence>& backups,
               const std::function<void(vmm::Machine&, const primary::Statistics&)>& on_turn = {}) {
    Ends ends;
    std::vector<std::unique_ptr<Host>> hosts;
    std::vector<std::unique_ptr<backup::Backup>> running;
    std::vector<std::future<backup::BackupEnd>> results;
    primary::PrimaryOptions options;
    const protocol::session::SecretKey own = key("a");
    const protocol::session::SecretKey theirs = key("b");
    for (const protocol::OnDivergence on_divergence : backups) {
      backup::BackupOptions backup = backup_options();
      backup.lockstep.on_divergence = on_divergence;
      hosts.push_back(std::make_unique<Host>());
      running.push_back(std::make_unique<backup::Backup>(backup, theirs));
      options.backups.push_back({{"127.0.0.1", running.back()->port()}, theirs.public_key()});
      results.push_back(std::async(std::launch::async, [one = running.back().get(), host = hosts.back().get()] {
        return one->run(*host->backends);
      }));
    }
    options.strategy = protocol::Strategy::kLockstep;
    options.lockstep = lockstep;
    options.silence_timeout = 20s;
    vmm::Machine* machine = nullptr;
    primary::Primary* leading = nullptr;
    options.on_turn = [&](const vmm::Machine&) {
      if (on_turn) on_turn(*machine, leading->statistics());
    };
    primary::Primary primary(options);
    leading = &primary;
    Host host;
    vmm::PassThroughInput input;
    ends.exit = primary.run(own, *host.backends, [&](vmm::OutputGate& gate) {
      auto made = vmm::boot_machine(machine_config(*host.backends), {guest_path(guest), {}, command_line}, *host.backends,
                                    input, gate);
      machine = made.get();
      return made;
    });
    ends.summary = primary.statistics().summary();
    ends.screen = host.screen->get();
    for (auto& result : results) ends.backups.push_back(result.get());
    for (const auto& other : hosts) EXPECT_EQ(other->screen->get(), "") << "a backup printed";
    return ends;
  }

  TemporaryFolder folder_;
};

// Some seconds: however long the full sync takes, the most of it lies behind.
const std::string kLong = "rounds=" + std::to_string(800'000 * kWork) + " pages=500";
const std::string kReadsTheClock = "what=rdtsc iterations=" + std::to_string(200'000'000 * kWork);

class LockstepKilled : public Lockstep, public ::testing::WithParamInterface<const char*> {};
INSTANTIATE_TEST_SUITE_P(CommitRules, LockstepKilled, ::testing::Values("on-output", "every-epoch"),
                         [](const auto& info) { return std::string(info.param) == "on-output" ? "OnOutput" : "EveryEpoch"; });

TEST_P(LockstepKilled, AtRandomMomentsTheComputationEndsAsIfNothingHadHappened) {
  const std::string expected = undisturbed("memory_writer", kLong);
  const auto own = key("b");
  std::mt19937_64 random(11);
  for (int round = 0; round < kKills; ++round) {
    Host host;
    backup::Backup backup(backup_options(), own);
    auto end = std::async(std::launch::async, [&] { return backup.run(*host.backends); });
    std::vector<std::string> words = primary_words({backup.port()}, "memory_writer", kLong);
    words.insert(words.end(), {"--commit", GetParam()});
    PrimaryProcess primary(words);
    const bool is_protected = primary.wait_for("protecting");
    if (!is_protected) backup.stop();
    ASSERT_TRUE(is_protected);
    std::this_thread::sleep_for(std::chrono::milliseconds(random() % 300));  // the random moment
    primary.kill();
    backup::BackupEnd result = end.get();
    EXPECT_EQ(finish(result, host), expected) << "round " << round;
  }
}

TEST_F(Lockstep, OfSeveralBackupsOneGoesOn) {
  const std::string expected = undisturbed("memory_writer", kLong);
  const auto own = key("b");
  std::mutex mutex;
  int claims = 0;
  backup::BackupOptions options = backup_options();
  options.claim = [&](const protocol::TermClaim&) {
    const std::lock_guard lock(mutex);
    return claims++ == 0 ? protocol::Verdict::kWon : protocol::Verdict::kLost;
  };
  std::array<Host, 2> hosts;
  backup::Backup first(options, own);
  backup::Backup second(options, own);
  auto first_end = std::async(std::launch::async, [&] { return first.run(*hosts[0].backends); });
  auto second_end = std::async(std::launch::async, [&] { return second.run(*hosts[1].backends); });
  PrimaryProcess primary(primary_words({first.port(), second.port()}, "memory_writer", kLong));
  EXPECT_TRUE(primary.wait_for("protecting"));
  EXPECT_TRUE(primary.wait_for("protecting"));
  primary.kill();
  std::array<backup::BackupEnd, 2> ends = {first_end.get(), second_end.get()};
  EXPECT_EQ(claims, 2);
  EXPECT_NE(ends[0].promotion.has_value(), ends[1].promotion.has_value());
  const std::size_t winner = ends[0].promotion ? 0 : 1;
  EXPECT_TRUE(ends[1 - winner].fenced);
  EXPECT_EQ(finish(ends[winner], hosts[winner]), expected);
}

TEST_F(Lockstep, AJoinerIsBroughtUpAndTakesOver) {
  const std::string expected = undisturbed("memory_writer", kLong);
  std::uint16_t port = 0;
  { port = protocol::Listener({"127.0.0.1", 0}, key("a"), {}).port(); }
  std::vector<std::string> words = primary_words({}, "memory_writer", kLong);
  words.insert(words.end(), {"--listen", "127.0.0.1:" + std::to_string(port)});
  PrimaryProcess primary(words);
  ASSERT_TRUE(primary.wait_for("backups may join"));
  backup::BackupOptions options = backup_options();
  options.listen.reset();
  options.join = {{{"127.0.0.1", port}, options.primary_keys.front()}};
  const auto own = key("b");
  Host host;
  backup::Backup backup(options, own);
  auto end = std::async(std::launch::async, [&] { return backup.run(*host.backends); });
  EXPECT_TRUE(primary.wait_for("protecting"));
  primary.kill();
  backup::BackupEnd result = end.get();
  EXPECT_EQ(finish(result, host), expected);
}

// Where CR4.TSD is honoured, to read the time stamp counter is an exception: the same on every host.
bool is_refused_the_clock(const primary::Summary& summary, const vmm::MachineExit& exit) {
  if (exit.detail != "the guest failed with code 0x20d") return false;
  EXPECT_EQ(summary.divergences, 0u);
  return true;
}
const std::string kRefused = "this KVM makes RDTSC an exception";

// The guest runs in lockstep while the joiner's image is made.
TEST_F(Lockstep, AJoinerBesideAnotherBackupTakesOver) {
  const std::string expected = undisturbed("memory_writer", kLong);
  const auto own = key("b");
  std::uint16_t port = 0;
  { port = protocol::Listener({"127.0.0.1", 0}, key("a"), {}).port(); }
  backup::BackupOptions options = backup_options();
  options.claim = [](const protocol::TermClaim&) { return protocol::Verdict::kLost; };  // it dies with the primary
  std::array<Host, 2> hosts;
  backup::Backup first(options, own);
  auto first_end = std::async(std::launch::async, [&] { return first.run(*hosts[0].backends); });
  std::vector<std::string> words = primary_words({first.port()}, "memory_writer", kLong);
  words.insert(words.end(), {"--listen", "127.0.0.1:" + std::to_string(port), "--epoch-length", "20000"});
  PrimaryProcess primary(words);
  const bool is_protected = primary.wait_for("backup 0: protecting");
  if (!is_protected) first.stop();
  ASSERT_TRUE(is_protected);
  options = backup_options();
  options.listen.reset();
  options.join = {{{"127.0.0.1", port}, options.primary_keys.front()}};
  backup::Backup joiner(options, own);
  auto joiner_end = std::async(std::launch::async, [&] { return joiner.run(*hosts[1].backends); });
  const bool has_joined = primary.wait_for("backup 1: protecting");
  if (!has_joined) {
    first.stop();
    joiner.stop();
  }
  EXPECT_TRUE(has_joined);
  EXPECT_EQ(joiner.status().session.term, protocol::Term{1});
  EXPECT_TRUE(eventually([&, before = joiner.status().session.whole.value] {
    return joiner.status().session.whole.value > before + 10;
  }));
  primary.kill();
  (void)primary.wait();
  EXPECT_EQ(primary.said().find("diverged"), std::string::npos) << primary.said();
  EXPECT_TRUE(first_end.get().fenced);
  backup::BackupEnd result = joiner_end.get();
  EXPECT_EQ(finish(result, hosts[1]), expected);
}

// A page that was written may have been copied in the midst, even if it is at its epoch's end as it was before.
TEST_F(Lockstep, WhoeverTracksIsToldOfEveryPageThatWasWritten) {
  constexpr std::uint64_t kPages = 200;
  for (const vmm::DirtyLog dirty_log : {vmm::DirtyLog::kBitmap, vmm::DirtyLog::kRing}) {
    DeterministicGuestConfig config{.kernel = "memory_writer", .command_line = "rewrite=1 pages=" + std::to_string(kPages)};
    config.options.dirty_log = dirty_log;
    DeterministicGuest guest(config);
    (void)guest.record({10'000}, 30);
    guest.machine().start_dirty_tracking();
    for (int epoch = 0; epoch < 5; ++epoch) {
      const RecordedRun run = guest.record({10'000}, 1);
      ASSERT_EQ(run.digests.size(), 1u);
      EXPECT_LT(run.digests[0].pages.size(), kPages / 2);
      EXPECT_GE(guest.machine().harvest_dirty_pages().size(), kPages) << "in epoch " << epoch;
    }
  }
}

// Once, on a guest that breaks no rules: what is not healed then stays wrong to the guest's last line.
TEST_F(Lockstep, AFlippedByteInABackupThatExecutesIsHealedAndTheBackupTakesOver) {
  constexpr std::uint64_t kMib = 17;
  // No word of the array is written twice.
  const std::string command_line = "rounds=500 pages=50 pause_ms=25";  // time for a full sync under ThreadSanitizer
  const std::string expected = undisturbed("memory_writer", command_line);
  Process backup(joined({"backup", "--listen", "127.0.0.1:0", "--key", file("b"), "--peer-key", file("a.pub"), "--arbiter",
                         "none", "--timeout-ms", "20000", "--console", "file=" + file("backup-console")},
                        {}));
  ASSERT_TRUE(backup.wait_for("listening on"));
  const std::string port = backup.said().substr(backup.said().rfind("(port ") + 6);
  Warnings warnings;
  primary::PrimaryOptions options;
  options.strategy = protocol::Strategy::kLockstep;
  options.silence_timeout = 20s;
  options.backups.push_back({{"127.0.0.1", static_cast<std::uint16_t>(std::stoul(port))}, key("b").public_key()});
  primary::Primary primary(options);
  Host host;
  vmm::PassThroughInput input;
  std::atomic<vmm::Machine*> machine = nullptr;
  const auto own = key("a");
  auto end = std::async(std::launch::async, [&] {
    return primary.run(own, *host.backends, [&](vmm::OutputGate& gate) {
      auto made = vmm::boot_machine(machine_config(*host.backends, kMib), {guest_path("memory_writer"), {}, command_line},
                                    *host.backends, input, gate);
      machine = made.get();
      return made;
    });
  });
  EXPECT_TRUE(eventually([&] { return primary.statistics().summary().lag_epochs.max > 0; })) << "in lockstep";

  // The array's pages are all that changes but stack and heap at the ends.
  const MemoryOf memory(backup, kMib << 20);
  std::vector<std::uint64_t> changed;
  EXPECT_TRUE(eventually([&] {
    const Bytes before = memory.read(0, kMib << 20);
    EXPECT_TRUE(eventually([&, closed = primary.statistics().summary().closed.value] {
      return primary.statistics().summary().closed.value > closed + 5;
    }));
    const Bytes after = memory.read(0, kMib << 20);
    changed.clear();
    for (std::uint64_t page = 0; page < before.size(); page += kPageSize) {
      if (!std::ranges::equal(ByteView(before).subspan(page, kPageSize), ByteView(after).subspan(page, kPageSize))) {
        changed.push_back(page);
      }
    }
    return changed.size() >= 50;
  }));
  ASSERT_GE(changed.size(), 50u);
  const std::uint64_t page = changed[changed.size() / 2];
  Bytes before = memory.read(page, kPageSize);
  Bytes after = before;
  EXPECT_TRUE(eventually([&] { return (after = memory.read(page, kPageSize)) != before; }));
  const auto at = static_cast<std::uint64_t>(std::ranges::mismatch(before, after).in1 - before.begin());
  ASSERT_LT(at, kPageSize);
  memory.write(page + at, after[at] ^ std::byte{0x10});
  EXPECT_TRUE(eventually([&] { return primary.statistics().summary().divergences == 1; }));
  // A guest that is held ends no epoch, and what diverged is healed at the end of one.
  EXPECT_TRUE(eventually([&] { return warnings.text().find("healed with") != std::string::npos; }));

  primary.pause();
  const vmm::GuestMemory& here = machine.load()->memory();
  EXPECT_TRUE(eventually([&] {
    const Bytes there = memory.read(0, kMib << 20);
    return std::ranges::all_of(here.all_gfns(), [&](vmm::Gfn gfn) {
      return std::ranges::equal(here.page(gfn), ByteView(there).subspan(gfn.value * kPageSize, kPageSize));
    });
  })) << "memory differs";
  primary.resume();
  EXPECT_EQ(primary.switch_over({}).to, protocol::BackupId{0});
  (void)end.get();
  EXPECT_EQ(primary.statistics().summary().divergences, 1u);
  EXPECT_EQ(backup.wait(), 0) << backup.said();
  std::ifstream console(file("backup-console"));
  std::ostringstream printed;
  printed << console.rdbuf();
  EXPECT_EQ(printed.str(), expected);
  std::ostringstream named;
  named << "diverged in epoch [0-9]+: page at 0x" << std::hex << page << "\n";
  EXPECT_THAT(warnings.text(), ::testing::ContainsRegex(named.str()));
}

// A guest whose memory is different wherever it runs: it must be found in each epoch, and healed.
TEST_F(Lockstep, ADivergenceIsFoundAndHealed) {
  const Ends ends = run_all("misbehave", kReadsTheClock, {}, {protocol::OnDivergence::kHeal});
  if (is_refused_the_clock(ends.summary, ends.exit)) GTEST_SKIP() << kRefused;
  EXPECT_EQ(ends.exit.reason, vmm::ExitReason::kPowerOff);
  EXPECT_EQ(ends.screen, "done\n");
  EXPECT_GT(ends.summary.divergences, 3u);
  EXPECT_FALSE(ends.backups[0].failed) << ends.backups[0].reason;
  EXPECT_THAT(ends.backups[0].reason, HasSubstr("powered off"));
}

TEST_F(Lockstep, HaltedByADivergenceABackupLeavesAndTheGuestGoesOn) {
  const Ends ends = run_all("misbehave", kReadsTheClock, {}, {protocol::OnDivergence::kHalt});
  if (is_refused_the_clock(ends.summary, ends.exit)) GTEST_SKIP() << kRefused;
  EXPECT_EQ(ends.exit.reason, vmm::ExitReason::kPowerOff);
  EXPECT_EQ(ends.screen, "done\n");
  EXPECT_EQ(ends.summary.backups, 0u);
  EXPECT_TRUE(ends.backups[0].failed);
  EXPECT_THAT(ends.backups[0].reason, HasSubstr("diverged in epoch"));
}

// One of two goes, the other is healed: each gets the record that is meant for it.
TEST_F(Lockstep, EachOfTwoBackupsIsHealedForItself) {
  const Ends ends = run_all("misbehave", kReadsTheClock, {},
                            {protocol::OnDivergence::kHeal, protocol::OnDivergence::kHalt, protocol::OnDivergence::kHeal});
  if (is_refused_the_clock(ends.summary, ends.exit)) GTEST_SKIP() << kRefused;
  EXPECT_EQ(ends.screen, "done\n");
  EXPECT_FALSE(ends.backups[0].failed) << ends.backups[0].reason;
  EXPECT_TRUE(ends.backups[1].failed);
  EXPECT_FALSE(ends.backups[2].failed) << ends.backups[2].reason;
}

TEST_F(Lockstep, ABackupIsNeverFurtherBehindThanIsAllowed) {
  for (const std::uint64_t max_lag : {1, 3}) {
    primary::LockstepOptions lockstep;
    lockstep.epoch_length = {20'000};
    lockstep.max_lag = max_lag;
    constexpr std::uint64_t kEpochs = 500;
    const Ends ends = run_all("memory_writer", "rounds=1000000000 pages=200", lockstep, {protocol::OnDivergence::kHeal},
                              [](vmm::Machine& machine, const primary::Statistics& statistics) {
                                if (statistics.summary().committed.value >= kEpochs) machine.request_exit();
                              });
    EXPECT_GE(ends.summary.epochs, kEpochs);
    EXPECT_LE(ends.summary.lag_epochs.max, max_lag);
    EXPECT_EQ(ends.summary.divergences, 0u);
  }
}

// POLLUX_LOCKSTEP_EPOCHS: how many, instead of 20 000.
TEST_F(Lockstep, ManyEpochsWithoutADivergence) {
  const char* asked_for = std::getenv("POLLUX_LOCKSTEP_EPOCHS");
  const std::uint64_t epochs = asked_for == nullptr ? 20'000 / kWork : std::stoull(asked_for);
  const std::uint64_t told_every = std::max<std::uint64_t>(epochs / 20, 10'000);
  std::uint64_t told = 0;
  primary::LockstepOptions lockstep;
  lockstep.epoch_length = {1'000};
  // Stopped when it is so far: the guest would go on for hours. It looks at the clock, too.
  const Ends ends = run_all("compute", "repeat=1000000 timed=1", lockstep, {protocol::OnDivergence::kHeal},
                            [&](vmm::Machine& machine, const primary::Statistics& statistics) {
                              const std::uint64_t committed = statistics.summary().committed.value;
                              if (committed >= epochs) machine.request_exit();
                              if (committed < told + told_every) return;
                              told = committed;
                              std::printf("%llu epochs, %llu divergences\n", static_cast<unsigned long long>(committed),
                                          static_cast<unsigned long long>(statistics.summary().divergences));
                              std::fflush(stdout);
                            });
  EXPECT_EQ(ends.exit.reason, vmm::ExitReason::kRequested);
  EXPECT_GE(ends.summary.committed.value, epochs);
  EXPECT_EQ(ends.summary.divergences, 0u);
  EXPECT_FALSE(ends.backups[0].failed) << ends.backups[0].reason;
}

// A replica without network: its records come from a machine beside it.
class Replica : public Lockstep {
 protected:
  static constexpr vmm::EpochLength kLength{2'000};  // of some rounds of memory_writer

  // The guest has run for a while; the replica has its state.
  void begin(const std::string& kernel, const std::string& command_line) {
    guest_ = std::make_unique<DeterministicGuest>(DeterministicGuestConfig{.kernel = kernel, .command_line = command_line});
    (void)guest_->record(kLength, 30);
    image_ = std::make_unique<backup::ReplicaImage>(guest_->machine().config(), *host_.backends);
    replica_ = std::make_unique<backup::LockstepReplica>(*image_, *host_.backends, kLength, 1s);
    EXPECT_FALSE(replica_->apply(pages_record(guest_->machine().memory().all_gfns())).has_value());
  }

  backup::EpochRecord pages_record(const std::vector<vmm::Gfn>& gfns) {
    backup::EpochRecord record;
    record.epoch = epoch_;
    for (const vmm::Gfn gfn : gfns) {
      const auto page = std::as_const(guest_->machine().memory()).page(gfn);
      record.pages.emplace_back(protocol::EpochPages{epoch_, {{{gfn.value}, 1, false}}}, Bytes(page.begin(), page.end()));
    }
    record.state = guest_->machine().save();
    return record;
  }

  // The guest's next epoch, and the pages it changed.
  backup::EpochRecord next_record(std::vector<vmm::Gfn>* changed = nullptr) {
    epoch_ = epoch_.next();
    const RecordedRun run = guest_->record(kLength, 1);
    POLLUX_ASSERT(run.inputs.size() == 1);
    if (changed != nullptr) std::ranges::copy(pages_of(run.digests[0]), std::back_inserter(*changed));
    backup::EpochRecord record;
    record.epoch = epoch_;
    record.inputs = run.inputs[0];
    record.clock = vmm::decode_epoch_inputs(record.inputs).clock;
    record.digest = encode(run.digests[0]);
    return record;
  }

  void expect_alike(int epochs) {
    for (int i = 0; i < epochs; ++i) {
      const auto diverged = replica_->apply(next_record());
      EXPECT_FALSE(diverged.has_value()) << "in epoch " << epoch_.value;
    }
  }

  [[nodiscard]] ByteView replicated_page(vmm::Gfn gfn) const { return std::as_const(replica_->machine().memory()).page(gfn); }
  void flip(vmm::Gfn gfn, std::size_t at) {
    // Behind everybody's back: not marked dirty.
    const_cast<std::byte&>(replicated_page(gfn)[at]) ^= std::byte{0x10};
  }
  // A byte that the guest wrote in an epoch that is executed here and now: memory_writer comes back to it after 512 rounds.
  std::size_t byte_just_written(vmm::Gfn gfn) {
    const Bytes before(replicated_page(gfn).begin(), replicated_page(gfn).end());
    expect_alike(1);
    return static_cast<std::size_t>(std::ranges::mismatch(before, replicated_page(gfn)).in1 - before.begin());
  }

  Host host_;
  protocol::EpochId epoch_;
  std::unique_ptr<DeterministicGuest> guest_;
  std::unique_ptr<backup::ReplicaImage> image_;
  std::unique_ptr<backup::LockstepReplica> replica_;
};

TEST_F(Replica, AFlippedByteIsFoundInItsEpochAndHealed) {
  begin("memory_writer", "rounds=100000 pages=200");
  expect_alike(20);
  std::vector<vmm::Gfn> changed;
  EXPECT_FALSE(replica_->apply(next_record(&changed)).has_value());
  ASSERT_GT(changed.size(), 150u) << "the array is written in every epoch";
  const vmm::Gfn wrong = changed[changed.size() / 2];  // of the array: the stack and the rest are at the ends
  const vmm::Gfn unused = replica_->machine().memory().all_gfns().back();
  flip(wrong, byte_just_written(wrong));
  flip(unused, 0);  // and what no epoch touches is found with it
  changed.clear();
  const backup::EpochRecord record = next_record(&changed);
  const auto diverged = replica_->apply(record);
  ASSERT_TRUE(diverged.has_value());
  EXPECT_EQ(diverged->epoch, epoch_);
  EXPECT_FALSE(diverged->all_pages);
  EXPECT_THAT(diverged->pages, ::testing::ElementsAre(protocol::PageNumber{wrong.value}, protocol::PageNumber{unused.value}));
  EXPECT_FALSE(replica_->executes());

  (void)next_record(&changed);  // the primary is further by then
  for (const protocol::PageNumber page : diverged->pages) changed.push_back({page.value});
  EXPECT_FALSE(replica_->apply(pages_record(changed)).has_value());
  EXPECT_TRUE(replica_->executes());
  EXPECT_EQ(first_difference(replica_->machine().memory(), guest_->machine().memory()), std::nullopt);
  expect_alike(20);
  EXPECT_EQ(first_difference(replica_->machine().memory(), guest_->machine().memory()), std::nullopt);
}

TEST_F(Replica, ATimeStampIsFoundInItsEpochAndHealed) {
  begin("misbehave", "what=rdtsc iterations=100000000");
  if (guest_->machine().exit()) GTEST_SKIP() << kRefused;
  for (int i = 0; i < 3; ++i) {
    std::vector<vmm::Gfn> changed;
    const auto diverged = replica_->apply(next_record(&changed));
    ASSERT_TRUE(diverged.has_value());
    EXPECT_EQ(diverged->epoch, epoch_);
    EXPECT_FALSE(diverged->all_pages);
    for (const protocol::PageNumber page : diverged->pages) changed.push_back({page.value});
    EXPECT_FALSE(replica_->apply(pages_record(changed)).has_value());
    EXPECT_EQ(first_difference(replica_->machine().memory(), guest_->machine().memory()), std::nullopt);
  }
}

// One that leads the guest elsewhere: it ends its epoch for another reason, or asks for other values.
TEST_F(Replica, AGuestLedAstrayIsHealed) {
  begin("idle", "ticks=1000000 period_ms=1");
  expect_alike(5);
  backup::EpochRecord record = next_record();
  vmm::EpochInputs inputs = vmm::decode_epoch_inputs(record.inputs);
  inputs.boundary = inputs.boundary == vmm::EpochBoundary::kWaited ? vmm::EpochBoundary::kExpired : vmm::EpochBoundary::kWaited;
  record.inputs = encode(inputs);
  const auto diverged = replica_->apply(record);
  ASSERT_TRUE(diverged.has_value());
  (void)next_record();  // the primary is further by then
  EXPECT_FALSE(replica_->apply(pages_record(guest_->machine().memory().all_gfns())).has_value());
  expect_alike(5);
}

// One that leads it where it is counted no more: its epoch never ends.
TEST_F(Replica, AGuestThatComesToNoEpochsEndIsHealed) {
  begin("memory_writer", "rounds=100000 pages=200");
  expect_alike(5);
  ASSERT_GT(make_sites_loop(replica_->machine().memory()), 0u);
  std::vector<vmm::Gfn> changed;
  const auto diverged = replica_->apply(next_record(&changed));
  ASSERT_TRUE(diverged.has_value());
  EXPECT_EQ(diverged->epoch, epoch_);
  EXPECT_FALSE(replica_->executes());
  (void)next_record(&changed);  // the primary is further by then
  for (const protocol::PageNumber page : diverged->pages) changed.push_back({page.value});
  EXPECT_FALSE(replica_->apply(pages_record(changed)).has_value());
  EXPECT_EQ(first_difference(replica_->machine().memory(), guest_->machine().memory()), std::nullopt);
  expect_alike(20);
}

TEST_F(Replica, InputsThatAreNoneAreAnError) {
  begin("memory_writer", "rounds=100000 pages=200");
  backup::EpochRecord record = next_record();
  record.inputs.resize(record.inputs.size() / 2);
  EXPECT_THROW((void)replica_->apply(record), Error);
}

TEST_F(Replica, AClockValueThatIsNotTheOneInTheInputsIsAnError) {
  begin("memory_writer", "rounds=100000 pages=200");
  backup::EpochRecord record = next_record();
  record.clock += 1ns;
  EXPECT_THROW((void)replica_->apply(record), Error);
}

}  // namespace
}  // namespace pollux::testing
