#include "primary/primary.h"

#include <sodium.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <atomic>
#include <future>
#include <mutex>
#include <optional>
#include <thread>

#include "base/error.h"
#include "primary/epoch_engine.h"
#include "primary/join_listener.h"
#include "primary/replica_driver.h"
#include "primary/status_reporter.h"
#include "vmm/deterministic/deterministic_machine.h"

namespace pollux::primary {
namespace {

using namespace std::chrono_literals;

// Pages on their way to a backup that joins a protected machine; taken when one does.
constexpr std::size_t kJoinerPoolBytes = std::size_t{16} << 20;
// The digest of an epoch that wrote all of it is within the protocol's bound.
constexpr std::uint64_t kMaxLockstepMemory = std::uint64_t{4} << 30;
static_assert((kMaxLockstepMemory >> kPageShift) * (sizeof(vmm::PageDigest)) + 4096 <= protocol::kMaxDigestBytesPerEpoch);

protocol::VmId random_vm_id() {
  protocol::VmId id;
  randombytes_buf(id.value.data(), id.value.size());
  return id;
}

protocol::Hello make_hello(const vmm::MachineConfig& config, protocol::Strategy strategy) {
  protocol::Hello hello;
  hello.vm = random_vm_id();
  hello.term = {1};
  hello.strategy = strategy;
  hello.machine_config = encode(config);
  hello.config_digest = protocol::digest_config(hello.machine_config);
  for (const vmm::DiskConfig& disk : config.disks) hello.disk_bytes.push_back(disk.size);
  return hello;
}

protocol::GoodbyeReason goodbye_reason(vmm::ExitReason reason) {
  switch (reason) {
    case vmm::ExitReason::kPowerOff: return protocol::GoodbyeReason::kPoweredOff;
    case vmm::ExitReason::kReset: return protocol::GoodbyeReason::kReset;
    default: return protocol::GoodbyeReason::kStopped;
  }
}

// A machine that nobody can arbitrate is not begun: its backup could never take over.
void claim_first_term(const protocol::Claim& claim, const protocol::Hello& hello, const protocol::ReplicaId& self) {
  if (claim && claim({hello.vm, hello.term, self}) != protocol::Verdict::kWon) {
    throw Error("the arbiter does not give this machine its first term: see --arbiter");
  }
}

// Connects to all backups at the same time. Once one is connected the others have little time left: it waits for its
// Hello.
class Connector {
 public:
  Connector(const PrimaryOptions& options, const protocol::session::SecretKey& key, const EngineMailbox& mailbox)
      : options_(options),
        key_(key),
        mailbox_(mailbox),
        deadline_((Clock::now() + options.connect_timeout).time_since_epoch()),
        links_(options.backups.size()) {}

  // By BackupId; null: not reached.
  std::vector<std::unique_ptr<protocol::Link>> connect_all() {
    std::vector<std::thread> threads;
    for (std::size_t i = 0; i < links_.size(); ++i) threads.emplace_back([this, i] { connect(i); });
    for (std::thread& thread : threads) thread.join();
    return std::move(links_);
  }

 private:
  using Clock = std::chrono::steady_clock;

  [[nodiscard]] std::chrono::milliseconds time_left() const {
    const auto left = deadline_.load() - Clock::now().time_since_epoch();
    return std::chrono::duration_cast<std::chrono::milliseconds>(left);
  }

  void connect(std::size_t index) {
    const BackupAddress& backup = options_.backups[index];
    std::string last_failure;
    while (!mailbox_.stopping() && time_left() > 0ms) {
      try {
        protocol::LinkOptions link;
        // In slices, so that a mute peer delays neither the end nor the other backups for long.
        link.deadline = std::min<std::chrono::milliseconds>(time_left(), 1000ms);
        link.stall_timeout = options_.silence_timeout;
        links_[index] = protocol::Link::connect(backup.address, key_, backup.key, link);
        spdlog::info("backup {} is {}", index, to_string(backup.address));
        hurry_the_others();
        return;
      } catch (const protocol::LinkError& failure) {
        if (last_failure != failure.what()) spdlog::info("{}; trying again", failure.what());
        last_failure = failure.what();
        std::this_thread::sleep_for(kRetryInterval);  // a backup that is being started: only time helps
      }
    }
  }

  void hurry_the_others() {
    const auto soon = (Clock::now() + options_.silence_timeout / 2).time_since_epoch();
    Clock::duration planned = deadline_.load();
    while (soon < planned && !deadline_.compare_exchange_weak(planned, soon)) {
    }
  }

  static constexpr auto kRetryInterval = 200ms;

  const PrimaryOptions& options_;
  const protocol::session::SecretKey& key_;
  const EngineMailbox& mailbox_;
  std::atomic<std::chrono::steady_clock::duration> deadline_;
  std::vector<std::unique_ptr<protocol::Link>> links_;
};

}  // namespace

struct Primary::Impl {
  explicit Impl(PrimaryOptions given) : options(std::move(given)) {}

  PrimaryOptions options;
  EngineMailbox mailbox;
  Statistics statistics;

  std::vector<std::unique_ptr<protocol::Link>> connect(const protocol::session::SecretKey& key);
  // Any thread. Nothing is posted while there is no driver.
  void set_driver(ReplicaDriver* current);
  void post(protocol::primary::Event event);
  // Any thread: this host may not go on, and a backup takes over. The first reason counts.
  void fail_stop(const std::string& why);
  [[nodiscard]] std::optional<std::string> failure() {
    const std::lock_guard lock(mutex);
    return failure_;
  }
  // Throws Error when there is no driver, which is so before the machine runs and after its end.
  template <class Function>
  auto with_driver(Function function) {
    const std::lock_guard lock(mutex);
    if (driver == nullptr) throw Error("the machine does not run yet, or has ended");
    return function(*driver);
  }
  // Nothing while there is none.
  std::optional<ReplicaStatus> replica_status_if_any() {
    const std::lock_guard lock(mutex);
    return driver == nullptr ? std::nullopt : std::optional(driver->status());
  }
  ReplicaStatus replica_status() {
    return with_driver([](const ReplicaDriver& running) { return running.status(); });
  }
  std::unique_ptr<protocol::Link> dial(const protocol::Address& address);

  const protocol::session::SecretKey* own_key = nullptr;  // as long as there is a driver
  protocol::VmId vm;
  std::atomic<bool> fenced = false;

 private:
  std::mutex mutex;
  std::optional<std::string> failure_;
  ReplicaDriver* driver = nullptr;  // as long as it exists
};

Primary::Primary(PrimaryOptions options) : impl_(std::make_unique<Impl>(std::move(options))) {}
Primary::~Primary() = default;

void Primary::stop() { impl_->mailbox.stop(); }

const Statistics& Primary::statistics() const { return impl_->statistics; }

bool Primary::handed_over() const {
  const auto outcome = impl_->mailbox.handover_outcome();
  return outcome && outcome->kind == HandoverOutcome::Kind::kHandedOver;
}

// An operator's orders.

namespace {
// How long an order waits for what it began. What it began goes on all the same.
constexpr auto kOrderTimeout = 10s;
// The last epoch's commit, then the handover's own timeout, then the arbiter.
constexpr auto kSwitchoverTimeout = 60s;
constexpr auto kDialTimeout = 3000ms;
}  // namespace

std::optional<PrimaryStatus> Primary::status() const {
  std::optional<ReplicaStatus> replica = impl_->replica_status_if_any();
  if (!replica) return std::nullopt;
  PrimaryStatus status{.vm = impl_->vm, .replica = std::move(*replica), .protection = {}, .guest = "running"};
  status.protection = impl_->statistics.summary().protection;
  if (impl_->mailbox.requested_handover()) {
    status.guest = "handing over";
  } else if (impl_->mailbox.is_held()) {
    status.guest = "paused";
  } else if (impl_->mailbox.is_claiming()) {
    status.guest = "waits for the arbiter";
  }
  return status;
}

void Primary::pause() {
  (void)impl_->replica_status();
  impl_->mailbox.set_held(true);
  if (!impl_->mailbox.wait_until_standing(true, kOrderTimeout)) {
    throw Error("the guest does not stand still yet: it will when the full sync or the epoch under way is over");
  }
}

void Primary::resume() {
  (void)impl_->replica_status();
  impl_->mailbox.set_held(false);
  if (!impl_->mailbox.wait_until_standing(false, kOrderTimeout)) {
    throw Error("the guest does not run yet: it will when what is under way is over");
  }
}

// The peer's key is not known from its address: the first that fits.
std::unique_ptr<protocol::Link> Primary::Impl::dial(const protocol::Address& address) {
  std::string failure = "there is no --peer-key to connect with";
  for (const protocol::session::PublicKey& peer : options.join_keys) {
    try {
      protocol::LinkOptions link;
      link.deadline = kDialTimeout;
      link.stall_timeout = options.silence_timeout;
      return protocol::Link::connect(address, *own_key, peer, link);
    } catch (const protocol::LinkError& error) {
      failure = error.what();
    }
  }
  throw Error(failure);
}

protocol::BackupId Primary::add_backup(const protocol::Address& address) {
  (void)impl_->replica_status();
  auto link = impl_->dial(address);
  struct Admission {
    std::optional<protocol::BackupId> id;
    std::string why;
  };
  const auto admission = std::make_shared<std::promise<Admission>>();
  auto admitted = admission->get_future();
  impl_->with_driver([&](ReplicaDriver& driver) {
    driver.join(std::move(link), [admission](std::optional<protocol::BackupId> id, const std::string& why) {
      admission->set_value({id, why});
    });
  });
  if (admitted.wait_for(kOrderTimeout) != std::future_status::ready) throw Error("the backup went away again");
  const Admission answer = admitted.get();
  if (!answer.id) throw Error("not now: " + answer.why);
  return *answer.id;
}

void Primary::drop_backup(protocol::BackupId backup) {
  const auto listed = [&] {
    const ReplicaStatus now = impl_->replica_status();
    return std::ranges::any_of(now.backups, [&](const auto& one) { return one.id == backup; });
  };
  if (!listed()) throw Error("there is no backup " + to_string(backup));
  impl_->with_driver([&](ReplicaDriver& driver) { driver.post(protocol::primary::Release{backup}); });
  const auto deadline = std::chrono::steady_clock::now() + kOrderTimeout;
  while (listed()) {
    if (std::chrono::steady_clock::now() >= deadline) {
      throw Error("the arbiter has not given the next term yet: the backup stays until it has");
    }
    impl_->mailbox.wait_for_news(20ms);
  }
}

Primary::Switchover Primary::switch_over(std::optional<protocol::BackupId> to) {
  const ReplicaStatus now = impl_->replica_status();
  const auto able = [](const ReplicaStatus::Backup& one) {
    return one.state == protocol::PrimaryReplica::BackupState::kProtecting;
  };
  const auto count = std::ranges::count_if(now.backups, able);
  if (count == 0) throw Error("no backup is protecting");
  if (!to && count > 1) throw Error("several backups are protecting: name one");
  const auto chosen = std::ranges::find_if(now.backups, [&](const auto& one) { return able(one) && (!to || one.id == *to); });
  if (chosen == now.backups.end()) throw Error("backup " + to_string(*to) + " is not protecting");
  if (!impl_->mailbox.request_handover(chosen->id)) throw Error("the machine is being handed over already, or ends");
  const auto outcome = impl_->mailbox.wait_for_handover(kSwitchoverTimeout);
  if (!outcome) throw Error("not decided: the arbiter cannot be asked, or the machine ended meanwhile");
  switch (outcome->kind) {
    case HandoverOutcome::Kind::kHandedOver: return {chosen->id, outcome->stood_still};
    case HandoverOutcome::Kind::kTakenBack: throw Error("backup " + to_string(chosen->id) + " did not take over (" +
                                                        outcome->reason + "): the guest goes on here");
    case HandoverOutcome::Kind::kRefused: break;
  }
  throw Error("not now: " + outcome->reason);
}

// By BackupId; null: not reached.
std::vector<std::unique_ptr<protocol::Link>> Primary::Impl::connect(const protocol::session::SecretKey& key) {
  if (options.backups.empty()) {
    // Who was promoted and has no address of its own stays unprotected until it is told to add a backup.
    POLLUX_ASSERT(options.listener != nullptr || options.succession);
    return {};
  }
  std::vector<std::unique_ptr<protocol::Link>> links = Connector(options, key, mailbox).connect_all();
  const bool any = std::ranges::any_of(links, [](const auto& link) { return link != nullptr; });
  if (!any && !mailbox.stopping()) {
    throw Error("no backup could be reached within " + std::to_string(options.connect_timeout.count()) +
                " ms: is `pollux backup` running there, with this host's public key as --peer-key?");
  }
  return links;
}

void Primary::Impl::set_driver(ReplicaDriver* current) {
  const std::lock_guard lock(mutex);
  driver = current;
}

void Primary::Impl::post(protocol::primary::Event event) {
  const std::lock_guard lock(mutex);
  if (driver != nullptr) driver->post(std::move(event));
}

void Primary::Impl::fail_stop(const std::string& why) {
  {
    const std::lock_guard lock(mutex);
    if (failure_) return;
    failure_ = why;
    spdlog::critical("{}: this host stops", why);
    // Without a goodbye: a backup takes over.
    if (driver != nullptr) driver->halt();
  }
  mailbox.fail();
}

vmm::MachineExit Primary::run(const protocol::session::SecretKey& key, vmm::Backends& backends,
                              const MakeMachine& make_machine) {
  const PrimaryOptions& options = impl_->options;
  PagePool pool(options.staging_bytes);
  PagePool joiner_pool(kJoinerPoolBytes);
  HoldingGate gate(backends, options.held_bytes,
                   {.durable = [&](protocol::EpochId epoch) { impl_->post(protocol::primary::EpochDurable{epoch}); },
                    // The guest was told that the write is done.
                    .image_failed = [&](const std::string& image) {
                      impl_->fail_stop("cannot write committed data to " + image);
                    }});
  const std::unique_ptr<vmm::Machine> machine = make_machine(gate);
  vmm::DeterministicMachine* deterministic = nullptr;
  if (options.strategy == protocol::Strategy::kLockstep) {
    deterministic = dynamic_cast<vmm::DeterministicMachine*>(machine.get());
    if (deterministic == nullptr) throw UsageError("strategy lockstep: the machine is not a deterministic one");
    if (machine->memory().size() > kMaxLockstepMemory) throw UsageError("strategy lockstep: the machine has more than 4 GiB");
  }
  std::vector<std::unique_ptr<protocol::Link>> links = impl_->connect(key);

  const protocol::ReplicaId self = protocol::ReplicaId::random();
  protocol::PrimaryConfig config;
  config.hello = make_hello(machine->config(), options.strategy);
  config.backups = links.size();
  config.timing = {options.heartbeat_interval, options.silence_timeout};
  if (options.succession) {
    config.hello.vm = options.succession->vm;
    config.hello.term = options.succession->term;
    config.closed = options.succession->epoch;
    impl_->mailbox.committed(config.closed);
  } else {
    claim_first_term(options.claim, config.hello, self);
  }
  const protocol::EpochId closed = config.closed;
  impl_->vm = config.hello.vm;
  impl_->own_key = &key;
  EpochEngine* engine_pointer = nullptr;
  ReplicaDriver driver(std::move(config), std::move(links), impl_->mailbox, impl_->statistics,
                       {.committed = [&](protocol::EpochId epoch, bool durable_first) {
                          engine_pointer->committed(epoch, durable_first);
                        },
                        .fenced = [&](const std::string& reason) {
                          impl_->fenced = true;
                          impl_->fail_stop("fenced: " + reason);
                        }},
                       options.claim, self);
  EpochEngine engine(*machine, backends, gate, pool, joiner_pool, impl_->mailbox, impl_->statistics,
                     {.post = [&](protocol::primary::Event event) { driver.post(std::move(event)); },
                      .post_quietly = [&](protocol::primary::Event event) { driver.post_quietly(std::move(event)); },
                      .post_and_wait = [&](protocol::primary::Event event) { driver.post_and_wait(std::move(event)); }},
                     {.epoch_length = options.epoch_length,
                      .deterministic = deterministic,
                      .lockstep = options.lockstep,
                      .remembered_limit = options.staging_bytes,
                      .closed = closed,
                      .on_turn = options.on_turn});
  engine_pointer = &engine;
  impl_->set_driver(&driver);

  driver.start();
  std::optional<JoinListener> joining;
  if (options.listener) {
    joining.emplace(options.listener, [&](std::unique_ptr<protocol::Link> link) { driver.join(std::move(link)); });
  }
  vmm::MachineExit exit{};
  try {
    const StatusReporter reporter(impl_->statistics, options.statistics_path, options.status_line);
    exit = engine.run();
    impl_->statistics.set_protection("ended");
    if (exit.reason == vmm::ExitReason::kHostFailed) impl_->fail_stop(exit.detail);
  } catch (const std::exception& error) {
    impl_->fail_stop(error.what());
  }
  impl_->mailbox.close();  // whoever waits for the machine
  joining.reset();
  const auto why = impl_->failure();
  if (!why) driver.post(protocol::primary::Stop{goodbye_reason(exit.reason)});  // nobody is left after a handover
  driver.stop();
  if (!why) driver.flush(options.silence_timeout);
  impl_->set_driver(nullptr);
  (void)impl_->mailbox.take_sync_requests();  // no shipper outlives the pool
  if (!why && engine.handed_over()) gate.drain();  // what was committed; the other host's images are the same then
  if (why || engine.handed_over() || engine.given_up()) gate.abandon();
  if (why && impl_->fenced) throw FencedError(*why);
  if (why) throw Error("this host failed: " + *why);
  if (engine.given_up()) {
    spdlog::error("stopped while the arbiter could not be asked: the guest's last outputs never left this host, and a "
                  "backup that was lost may lead the machine");
  }
  return exit;
}

}  // namespace pollux::primary
