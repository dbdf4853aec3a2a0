#include "primary/primary.h"

#include <sodium.h>
#include <spdlog/spdlog.h>
#include <unistd.h>

#include <cstdio>

#include "primary/epoch_engine.h"
#include "primary/replica_driver.h"
#include "primary/status_reporter.h"

namespace pollux::primary {
namespace {

using namespace std::chrono_literals;

protocol::VmId random_vm_id() {
  protocol::VmId id;
  randombytes_buf(id.value.data(), id.value.size());
  return id;
}

protocol::Hello make_hello(const vmm::MachineConfig& config) {
  protocol::Hello hello;
  hello.vm = random_vm_id();
  hello.term = {1};
  hello.strategy = protocol::Strategy::kCopy;
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

// Until connected, the time is over, or `stop` is asked for. Null: not reached.
std::unique_ptr<protocol::Link> connect_to(const BackupAddress& backup, const protocol::session::SecretKey& key,
                                           std::chrono::steady_clock::time_point deadline,
                                           std::chrono::milliseconds stall_timeout,
                                           const EngineMailbox& mailbox) {
  std::string last_failure;
  while (!mailbox.stopping()) {
    const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(deadline - std::chrono::steady_clock::now());
    if (left <= 0ms) break;
    try {
      protocol::LinkOptions options;
      options.deadline = left;
      options.stall_timeout = stall_timeout;
      return protocol::Link::connect(backup.address, key, backup.key, options);
    } catch (const protocol::LinkError& failure) {
      if (last_failure != failure.what()) spdlog::info("{}; trying again", failure.what());
      last_failure = failure.what();
      ::usleep(100'000);  // a backup that is being started: there is nothing to wait on but time
    }
  }
  return nullptr;
}

}  // namespace

struct Primary::Impl {
  explicit Impl(PrimaryOptions given) : options(std::move(given)) {}

  PrimaryOptions options;
  EngineMailbox mailbox;
  Statistics statistics;
  std::vector<std::unique_ptr<Shipper>> shippers;  // by BackupId

  [[nodiscard]] std::vector<Shipper*> shipper_pointers() const {
    std::vector<Shipper*> pointers;
    for (const auto& shipper : shippers) pointers.push_back(shipper.get());
    return pointers;
  }
};

Primary::Primary(PrimaryOptions options) : impl_(std::make_unique<Impl>(std::move(options))) {}
Primary::~Primary() = default;

void Primary::stop() { impl_->mailbox.stop(); }

const Statistics& Primary::statistics() const { return impl_->statistics; }

void Primary::connect(const protocol::session::SecretKey& key) {
  const auto deadline = std::chrono::steady_clock::now() + impl_->options.connect_timeout;
  std::size_t connected = 0;
  for (const BackupAddress& backup : impl_->options.backups) {
    auto link = connect_to(backup, key, deadline, impl_->options.silence_timeout, impl_->mailbox);
    if (link) {
      spdlog::info("backup {} is {}", impl_->shippers.size(), to_string(backup.address));
      ++connected;
    }
    impl_->shippers.push_back(link ? std::make_unique<Shipper>(std::move(link)) : nullptr);
  }
  if (connected == 0 && !impl_->mailbox.stopping()) {
    throw Error("no backup could be reached within " + std::to_string(impl_->options.connect_timeout.count()) +
                " ms: is `pollux backup` running there, with this host's public key as --peer-key?");
  }
}

vmm::MachineExit Primary::run(vmm::Backends& backends, const MakeMachine& make_machine) {
  const PrimaryOptions& options = impl_->options;
  PagePool pool(options.staging_bytes);
  ReplicaDriver* driver_pointer = nullptr;
  HoldingGate gate(backends, options.held_bytes,
                   {.durable = [&](protocol::EpochId epoch) { driver_pointer->post(protocol::primary::EpochDurable{epoch}); },
                    .image_failed =
                        [&](const std::string& image) {
                          spdlog::critical("cannot write committed data to {}: this host stops, a backup takes over", image);
                          for (const auto& shipper : impl_->shippers) {
                            if (shipper) shipper->abort();
                          }
                          impl_->mailbox.stop();
                        }});
  const std::unique_ptr<vmm::Machine> machine = make_machine(gate);

  protocol::PrimaryConfig config;
  config.hello = make_hello(machine->config());
  config.backups = impl_->shippers.size();
  config.timing = {options.heartbeat_interval, options.silence_timeout};
  EpochEngine* engine_pointer = nullptr;
  ReplicaDriver driver(std::move(config), impl_->shipper_pointers(), impl_->mailbox, impl_->statistics,
                       [&](protocol::EpochId epoch, bool durable_first) {
                         engine_pointer->committed(epoch, durable_first);
                       });
  driver_pointer = &driver;
  EpochEngine engine(*machine, backends, gate, pool, impl_->mailbox, impl_->statistics, impl_->shipper_pointers(),
                     [&](protocol::primary::Event event) { driver.post(std::move(event)); },
                     {options.epoch_length});
  engine_pointer = &engine;

  driver.start();
  StatusReporter reporter(impl_->statistics, options.statistics_path, options.status_line);
  const vmm::MachineExit exit = engine.run();
  impl_->statistics.set_protection("ended");
  driver.post(protocol::primary::Stop{goodbye_reason(exit.reason)});
  driver.stop();
  for (const auto& shipper : impl_->shippers) {
    if (!shipper) continue;
    shipper->wait_until_sent(options.silence_timeout);
    (void)shipper->link().flush(options.silence_timeout);
  }
  impl_->shippers.clear();  // gives every page chunk back before the pool goes
  return exit;
}

}  // namespace pollux::primary
