// The epoch engine in lockstep with the real state machine, over real links; the machine and its backups are the test's: an
// epoch ends when it lets it, and a backup says what it is told to.
#include <gtest/gtest.h>

#include <atomic>
#include <condition_variable>
#include <functional>
#include <future>
#include <limits>
#include <mutex>
#include <thread>

#include "primary/epoch_engine.h"
#include "primary/replica_driver.h"
#include "tests/support/eventually.h"
#include "vmm/devices/console_port.h"

namespace pollux::primary {
namespace {

using namespace std::chrono_literals;
using protocol::BackupId;
using protocol::EpochId;
using pollux::testing::eventually;

// Far longer than anything takes; reached only by a test that fails.
constexpr auto kPatience = 60s;
constexpr std::uint64_t kMemory = std::uint64_t{1} << 20;
constexpr std::uint64_t kNoLimit = std::numeric_limits<std::uint64_t>::max();

vmm::MachineConfig machine_config() {
  vmm::MachineConfig config;
  config.memory_bytes = kMemory;
  config.profile = vmm::MachineProfile::kDeterministic;
  return config;
}

// Each epoch takes one permit, and changes nothing.
class PermittedMachine final : public vmm::DeterministicMachine {
 public:
  using Begin = std::function<void(std::uint64_t epochs_over)>;
  explicit PermittedMachine(Begin begin = {}) : begin_(std::move(begin)) {}

  void permit(std::uint64_t epochs) {
    const std::lock_guard lock(mutex_);
    permits_ = epochs == kNoLimit ? kNoLimit : permits_ + epochs;
    changed_.notify_all();
  }
  [[nodiscard]] std::uint64_t epochs_over() const {
    const std::lock_guard lock(mutex_);
    return epoch_.value;
  }

  [[nodiscard]] const vmm::MachineConfig& config() const override { return config_; }
  [[nodiscard]] vmm::GuestMemory& memory() override { return memory_; }
  [[nodiscard]] vmm::DirtyLog dirty_log() const override { return vmm::DirtyLog::kBitmap; }
  void resume() override { paused_ = false; }
  void pause() override { paused_ = true; }
  [[nodiscard]] bool paused() const override { return paused_; }
  void start_dirty_tracking() override {}
  void stop_dirty_tracking() override {}
  std::vector<vmm::Gfn> harvest_dirty_pages() override { return {}; }
  void announce() override {}
  Bytes save() override { return Bytes(16); }
  [[nodiscard]] std::optional<std::chrono::steady_clock::time_point> first_entry() const override { return {}; }
  std::optional<vmm::MachineExit> wait_for_exit(std::chrono::milliseconds timeout) override {
    std::unique_lock lock(mutex_);
    changed_.wait_for(lock, timeout, [&] { return exit_.has_value(); });
    return exit_;
  }
  void request_exit() override {
    const std::lock_guard lock(mutex_);
    exit_ = vmm::MachineExit{vmm::ExitReason::kRequested, ""};
    changed_.notify_all();
  }
  [[nodiscard]] vmm::EpochNumber epoch() const override { return epoch_; }
  [[nodiscard]] const std::optional<vmm::MachineExit>& exit() const override { return guest_exit_; }
  vmm::EpochEnd record_epoch(vmm::EpochLength length) override {
    std::unique_lock lock(mutex_);
    if (!std::exchange(under_way_, true) && begin_) begin_(epoch_.value);
    changed_.wait(lock, [&] { return interrupted_ || exit_ || permits_ > 0; });
    vmm::EpochEnd end;
    end.number = epoch_;
    if (std::exchange(interrupted_, false)) {
      end.why = vmm::EpochEnd::Why::kStopped;
      return end;
    }
    if (permits_ > 0 && permits_ != kNoLimit) --permits_;
    under_way_ = false;
    ++epoch_.value;
    end.inputs.length = length;
    return end;
  }
  vmm::EpochEnd replay_epoch(const vmm::EpochInputs&) override { return {}; }
  void interrupt() override {
    const std::lock_guard lock(mutex_);
    interrupted_ = true;
    changed_.notify_all();
  }
  void promote() override {}
  std::vector<vmm::Gfn> altered_pages() override { return {}; }
  std::unique_ptr<vmm::GuestMemory> give_up_memory() override { return nullptr; }

 private:
  const Begin begin_;
  const vmm::MachineConfig config_ = machine_config();
  vmm::GuestMemory memory_{kMemory};
  const std::optional<vmm::MachineExit> guest_exit_;
  std::atomic<bool> paused_ = true;
  mutable std::mutex mutex_;  // all below
  std::condition_variable changed_;
  std::optional<vmm::MachineExit> exit_;
  std::uint64_t permits_ = 0;
  bool interrupted_ = false;
  bool under_way_ = false;
  vmm::EpochNumber epoch_;
};

// A backup's side of the protocol: it acknowledges and executes what it got, as far as it may.
class ScriptedBackup {
 public:
  explicit ScriptedBackup(std::unique_ptr<protocol::Link> link) : link_(std::move(link)) {
    thread_ = std::jthread([this](const std::stop_token& stop) { run(stop); });
  }
  ~ScriptedBackup() { link_->close(); }

  void may_acknowledge(std::uint64_t up_to) {
    const std::lock_guard lock(mutex_);
    ack_limit_ = up_to;
    answer();
  }
  void may_execute(std::uint64_t up_to) {
    const std::lock_guard lock(mutex_);
    execute_limit_ = up_to;
    answer();
  }
  // All of memory differs at this epoch's end. From here on it acknowledges a record of pages only.
  void diverge(std::uint64_t epoch) {
    const std::lock_guard lock(mutex_);
    diverged_ = true;
    (void)link_->send(protocol::Divergence{{epoch}, 0, true});
  }
  // Its host dies.
  void die() { link_->close(); }
  [[nodiscard]] std::uint64_t whole() const { return whole_; }
  [[nodiscard]] std::uint64_t healed() const { return healed_; }

 private:
  void run(const std::stop_token& stop) {
    while (!stop.stop_requested() && link_->is_up()) {
      if (const auto received = link_->receive(20ms)) {
        const std::lock_guard lock(mutex_);
        std::visit([this](const auto& message) { on(message); }, received->message);
      }
    }
  }
  template <class Other>
  void on(const Other&) {}
  void on(const protocol::Hello& hello) {
    (void)link_->send(protocol::Welcome{protocol::kProtocolVersion, hello.term, hello.config_digest});
  }
  void on(const protocol::SyncMark& mark) { (void)link_->send(mark); }
  void on(const protocol::SyncEnd& end) {
    whole_ = acknowledged_ = executed_ = end.epoch.value;
    (void)link_->send(protocol::Ack{end.epoch});
  }
  void on(const protocol::EpochOpen& open) { pages_ = open.kind == protocol::RecordKind::kPages; }
  void on(const protocol::EpochClose& close) {
    whole_ = close.epoch.value;
    if (pages_ && std::exchange(diverged_, false)) {
      ++healed_;
      acknowledged_ = executed_ = whole_;
      (void)link_->send(protocol::Ack{close.epoch});
    }
    answer();
  }
  // With mutex_ held.
  void answer() {
    if (diverged_) return;
    if (const std::uint64_t upto = std::min<std::uint64_t>(whole_, ack_limit_); upto > acknowledged_) {
      acknowledged_ = upto;
      (void)link_->send(protocol::Ack{{upto}});
    }
    if (const std::uint64_t upto = std::min<std::uint64_t>(whole_, execute_limit_); upto > executed_) {
      executed_ = upto;
      (void)link_->send(protocol::Executed{{upto}});
    }
  }

  std::unique_ptr<protocol::Link> link_;
  std::mutex mutex_;  // all below
  std::uint64_t ack_limit_ = kNoLimit;
  std::uint64_t execute_limit_ = kNoLimit;
  std::uint64_t acknowledged_ = 0;
  std::uint64_t executed_ = 0;
  bool diverged_ = false;
  bool pages_ = false;  // the record that is open
  std::atomic<std::uint64_t> whole_ = 0;
  std::atomic<std::uint64_t> healed_ = 0;
  std::jthread thread_;  // last: it uses everything above
};

// What of the guest has reached the world.
class CountingConsole final : public vmm::ConsolePort {
 public:
  explicit CountingConsole(std::atomic<std::uint64_t>& bytes) : bytes_(bytes) {}
  [[nodiscard]] int poll_fd() const override { return -1; }
  [[nodiscard]] Bytes read() override { return {}; }
  void write(ByteView bytes) override { bytes_ += bytes.size(); }

 private:
  std::atomic<std::uint64_t>& bytes_;
};

class LockstepEngineTest : public ::testing::Test {
 protected:
  ~LockstepEngineTest() override {
    if (!running_.valid()) return;
    mailbox_.stop();
    machine_->permit(kNoLimit);
    backups_.clear();
    (void)running_.get();
    driver_->stop();
  }

  // The engine runs, protected by so many backups, in the first epoch.
  void protect(std::size_t backups, LockstepOptions options, PermittedMachine::Begin begin = {}) {
    machine_ = std::make_unique<PermittedMachine>(std::move(begin));
    protocol::PrimaryConfig config;
    config.hello.term = {1};
    config.hello.strategy = protocol::Strategy::kLockstep;
    config.backups = backups;
    config.timing = {1s, kPatience, 50ms};
    std::vector<std::unique_ptr<protocol::Link>> links;
    for (std::size_t i = 0; i < backups; ++i) links.push_back(connect());
    driver_ = std::make_unique<ReplicaDriver>(
        std::move(config), std::move(links), mailbox_, statistics_,
        ReplicaDriver::Callbacks{[this](EpochId epoch, bool durable_first) { engine_->committed(epoch, durable_first); },
                                 [](const std::string&) {}},
        [this](const protocol::TermClaim&) { return verdict_.load(); }, protocol::ReplicaId{});
    engine_ = std::make_unique<EpochEngine>(
        *machine_, backends_, gate_, pool_, joiner_pool_, mailbox_, statistics_,
        EpochEngine::Replica{[this](protocol::primary::Event event) { driver_->post(std::move(event)); },
                             [this](protocol::primary::Event event) { driver_->post_quietly(std::move(event)); },
                             [this](protocol::primary::Event event) { driver_->post_and_wait(std::move(event)); }},
        EpochEngine::Options{.deterministic = machine_.get(),
                             .lockstep = options,
                             .remembered_limit = 64 << 20,
                             .closed = {},
                             .on_turn = {}});
    driver_->start();
    running_ = std::async(std::launch::async, [this] { return engine_->run(); });
    ASSERT_TRUE(eventually([&] { return statistics_.summary().backups == backups; }));
  }

  std::unique_ptr<protocol::Link> connect() {
    protocol::Listener listener({"127.0.0.1", 0}, backup_key_, std::vector{primary_key_.public_key()});
    auto link = protocol::Link::connect({"127.0.0.1", listener.port()}, primary_key_, backup_key_.public_key());
    auto accepted = listener.accept(kPatience);
    POLLUX_ASSERT(accepted != nullptr);
    backups_.push_back(std::make_unique<ScriptedBackup>(std::move(accepted)));
    return link;
  }

  [[nodiscard]] protocol::PrimaryReplica::BackupState state_of(std::uint32_t backup) const {
    for (const ReplicaStatus::Backup& one : driver_->status().backups) {
      if (one.id == BackupId{backup}) return one.state;
    }
    return protocol::PrimaryReplica::BackupState::kDropped;
  }
  [[nodiscard]] bool stays(const std::function<bool()>& condition) {
    const auto until = std::chrono::steady_clock::now() + 100ms;
    while (std::chrono::steady_clock::now() < until) {
      if (!condition()) return false;
      std::this_thread::sleep_for(1ms);
    }
    return true;
  }

  protocol::session::SecretKey primary_key_ = protocol::session::SecretKey::generate();
  protocol::session::SecretKey backup_key_ = protocol::session::SecretKey::generate();
  std::atomic<protocol::Verdict> verdict_ = protocol::Verdict::kWon;
  std::atomic<std::uint64_t> console_bytes_ = 0;
  vmm::Backends backends_{{}, {}, std::make_unique<CountingConsole>(console_bytes_), vmm::open_console("none", [] {})};
  HoldingGate gate_{backends_, 1 << 20, {.durable = [](EpochId) {}, .image_failed = [](const std::string&) {}}};
  PagePool pool_{8 << 20};
  PagePool joiner_pool_{4 << 20};
  EngineMailbox mailbox_;
  Statistics statistics_;
  std::vector<std::unique_ptr<ScriptedBackup>> backups_;
  std::unique_ptr<PermittedMachine> machine_;
  std::unique_ptr<ReplicaDriver> driver_;
  std::unique_ptr<EpochEngine> engine_;
  std::future<vmm::MachineExit> running_;
};

// With --commit on-output: a byte leaves the guest in each epoch.
TEST_F(LockstepEngineTest, OutputsWaitForTheirEpochsCommitAndTheGuestDoesNot) {
  protect(1, {}, [&](std::uint64_t) { gate_.console(vmm::kSerialConsole, Bytes(1)); });
  backups_[0]->may_acknowledge(2);
  machine_->permit(10);
  EXPECT_TRUE(eventually([&] { return machine_->epochs_over() == 10; }));
  EXPECT_TRUE(eventually([&] { return console_bytes_ == 2; }));
  EXPECT_TRUE(stays([&] { return console_bytes_ == 2; }));
  backups_[0]->may_acknowledge(7);
  EXPECT_TRUE(eventually([&] { return console_bytes_ == 7; }));
  EXPECT_TRUE(stays([&] { return console_bytes_ == 7; }));
}

// With --commit every-epoch.
TEST_F(LockstepEngineTest, AnEpochBeginsWhenTheOneBeforeIsCommitted) {
  std::atomic<bool> early = false;
  LockstepOptions options;
  options.commit_rule = CommitRule::kEveryEpoch;
  protect(1, options, [&](std::uint64_t epochs_over) { early = early || mailbox_.committed().value < epochs_over; });
  machine_->permit(3);
  EXPECT_TRUE(eventually([&] { return mailbox_.committed() == EpochId{3}; }));
  backups_[0]->may_acknowledge(3);  // and execute
  machine_->permit(kNoLimit);
  EXPECT_TRUE(eventually([&] { return machine_->epochs_over() == 4; }));
  EXPECT_TRUE(stays([&] { return machine_->epochs_over() == 4; }));
  backups_[0]->may_acknowledge(10);
  EXPECT_TRUE(eventually([&] { return machine_->epochs_over() == 11; }));
  EXPECT_TRUE(stays([&] { return machine_->epochs_over() == 11; }));
  EXPECT_FALSE(early);
}

// Its heal was asked for, and nobody has to be able to carry it out any more: the epochs are forgotten that it is about.
TEST_F(LockstepEngineTest, ADivergedBackupThatIsLostBeforeTheEpochEndsIsNotHealed) {
  protect(2, {});
  verdict_ = protocol::Verdict::kUnreachable;  // it stays lost
  backups_[1]->may_execute(4);
  machine_->permit(6);
  EXPECT_TRUE(eventually([&] { return mailbox_.executed() == EpochId{4} && mailbox_.committed() == EpochId{6}; }));
  // The seventh epoch is under way.
  backups_[1]->diverge(5);
  EXPECT_TRUE(eventually([&] { return statistics_.summary().divergences == 1; }));
  backups_[1]->die();
  EXPECT_TRUE(eventually([&] { return mailbox_.executed() == EpochId{6}; }));
  machine_->permit(2);
  EXPECT_TRUE(eventually([&] { return mailbox_.executed() == EpochId{8}; }));
  EXPECT_EQ(state_of(1), protocol::PrimaryReplica::BackupState::kLost);
  EXPECT_EQ(backups_[1]->healed(), 0u);
}

TEST_F(LockstepEngineTest, ADivergedBackupIsHealedAtTheNextEpochsEnd) {
  protect(2, {});
  backups_[1]->may_execute(4);
  machine_->permit(6);
  EXPECT_TRUE(eventually([&] { return mailbox_.executed() == EpochId{4} && mailbox_.committed() == EpochId{6}; }));
  backups_[1]->diverge(5);
  EXPECT_TRUE(eventually([&] { return statistics_.summary().divergences == 1; }));
  backups_[1]->may_execute(kNoLimit);
  machine_->permit(2);
  EXPECT_TRUE(eventually([&] { return mailbox_.committed() == EpochId{8} && mailbox_.executed() == EpochId{8}; }));
  EXPECT_EQ(backups_[1]->healed(), 1u);
}

// A lost backup counts for commits until the arbiter has decided, and for nothing else.
TEST_F(LockstepEngineTest, WhileALossIsUndecidedEpochsNotCommittedAreBounded) {
  LockstepOptions options;
  options.max_lag = 8;
  protect(2, options);
  verdict_ = protocol::Verdict::kUnreachable;
  machine_->permit(4);
  EXPECT_TRUE(eventually([&] { return mailbox_.committed() == EpochId{4}; }));
  backups_[1]->die();
  EXPECT_TRUE(eventually([&] { return state_of(1) == protocol::PrimaryReplica::BackupState::kLost; }));
  machine_->permit(kNoLimit);
  EXPECT_TRUE(eventually([&] { return machine_->epochs_over() >= 4 + options.max_lag; }));
  EXPECT_TRUE(stays([&] { return machine_->epochs_over() == 4 + options.max_lag; })) << machine_->epochs_over();
  verdict_ = protocol::Verdict::kWon;
  EXPECT_TRUE(eventually([&] { return mailbox_.committed().value > 100; }));
}

// A heal takes the end of an epoch, whatever else the guest waits for; but only one of each backup's until there is a commit.
TEST_F(LockstepEngineTest, WhileALossIsUndecidedHealsAreBounded) {
  LockstepOptions options;
  options.max_lag = 2;
  protect(3, options);
  verdict_ = protocol::Verdict::kUnreachable;
  backups_[0]->die();
  EXPECT_TRUE(eventually([&] { return state_of(0) == protocol::PrimaryReplica::BackupState::kLost; }));
  const auto heal = [&](std::size_t backup, std::uint64_t epoch) {
    const std::uint64_t before = statistics_.summary().divergences;
    backups_[backup]->diverge(epoch);
    EXPECT_TRUE(eventually([&] { return statistics_.summary().divergences == before + 1; }));
  };
  backups_[1]->may_execute(1);
  backups_[2]->may_execute(2);
  machine_->permit(kNoLimit);
  EXPECT_TRUE(eventually([&] { return mailbox_.executed() == EpochId{1} && machine_->epochs_over() == 2; }));
  heal(1, 2);
  EXPECT_TRUE(eventually([&] { return backups_[1]->healed() == 1; }));
  EXPECT_EQ(machine_->epochs_over(), 3u);
  EXPECT_TRUE(eventually([&] { return backups_[2]->whole() == 3; }));
  heal(2, 3);
  EXPECT_TRUE(eventually([&] { return backups_[2]->healed() == 1; }));
  EXPECT_TRUE(eventually([&] { return backups_[1]->whole() == 4; }));
  heal(1, 4);
  EXPECT_TRUE(stays([&] { return machine_->epochs_over() == 4 && backups_[1]->healed() == 1; }));
  verdict_ = protocol::Verdict::kWon;
  backups_[1]->may_execute(kNoLimit);
  backups_[2]->may_execute(kNoLimit);
  EXPECT_TRUE(eventually([&] { return backups_[1]->healed() == 2 && mailbox_.committed().value > 100; }));
}

}  // namespace
}  // namespace pollux::primary
