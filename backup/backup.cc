#include "backup/backup.h"

#include <spdlog/spdlog.h>

#include <fstream>
#include <mutex>

#include "backup/failover.h"
#include "backup/replication_session.h"
#include "base/error.h"

namespace pollux::backup {

using namespace std::chrono_literals;

namespace {

protocol::TimePoint now() { return std::chrono::steady_clock::now(); }

protocol::LinkOptions link_options(const BackupOptions& options) {
  protocol::LinkOptions link;
  link.stall_timeout = options.silence_timeout;
  return link;
}

}  // namespace

struct Backup::Impl {
  Impl(BackupOptions given, const protocol::session::SecretKey& key)
      : options(std::move(given)), listener(options.listen, key, {options.primary_key}, link_options(options)) {}

  std::unique_ptr<protocol::Link> wait_for_primary();
  BackupEnd take_over(ReplicationSession& session, const SessionOutcome& outcome, vmm::Backends& backends);
  vmm::MachineExit run_promoted(vmm::Machine& promoted, const PromotedOutput& output, FailoverTimeline timeline,
                                bool may_send) const;
  void set_session(ReplicationSession* current);
  void report(const FailoverTimeline& timeline) const;
  [[nodiscard]] bool stopping() {
    const std::lock_guard lock(mutex);
    return stop_requested;
  }

  BackupOptions options;
  protocol::Listener listener;

  std::mutex mutex;
  bool stop_requested = false;
  ReplicationSession* session = nullptr;  // while one runs
  vmm::Machine* machine = nullptr;        // once promoted
};

Backup::Backup(BackupOptions options, const protocol::session::SecretKey& key)
    : impl_(std::make_unique<Impl>(std::move(options), key)) {}
Backup::~Backup() = default;

std::uint16_t Backup::port() const { return impl_->listener.port(); }

void Backup::stop() {
  const std::lock_guard lock(impl_->mutex);
  impl_->stop_requested = true;
  impl_->listener.close();
  if (impl_->session != nullptr) impl_->session->stop();
  if (impl_->machine != nullptr) impl_->machine->request_exit();
}

std::unique_ptr<protocol::Link> Backup::Impl::wait_for_primary() {
  while (!stopping()) {
    if (auto link = listener.accept(1s)) return link;
  }
  return nullptr;
}

BackupEnd Backup::run(vmm::Backends& backends) {
  for (;;) {
    auto link = impl_->wait_for_primary();
    if (!link) return {.reason = "stopped before a primary came"};
    spdlog::info("primary connected from {}", link->peer_address());
    ReplicationSession session(std::move(link), backends,
                               {impl_->options.heartbeat_interval, impl_->options.silence_timeout},
                               impl_->options.staging_bytes,
                               [&](const vmm::MachineConfig& config, ByteView state) {
                                 rehearse_restore(config, state, backends);
                               },
                               impl_->options.claim);
    impl_->set_session(&session);
    const SessionOutcome outcome = session.run();
    impl_->set_session(nullptr);
    if (outcome.again) {
      spdlog::info("{}: waiting for another primary", outcome.reason);
      continue;
    }
    if (!outcome.promote) return {.failed = outcome.failed, .reason = outcome.reason};
    impl_->listener.close();
    return impl_->take_over(session, outcome, backends);
  }
}

void Backup::Impl::set_session(ReplicationSession* current) {
  const std::lock_guard lock(mutex);
  session = current;
  if (session != nullptr && stop_requested) session->stop();
}

BackupEnd Backup::Impl::take_over(ReplicationSession& session, const SessionOutcome& outcome,
                                  vmm::Backends& backends) {
  FailoverTimeline timeline{.epoch = outcome.epoch,
                            .reason = outcome.reason,
                            .epoch_received = outcome.epoch_received,
                            .last_heard = outcome.last_heard,
                            .detected = outcome.detected,
                            .promoted = {},
                            .first_entry = {},
                            .first_frame = {}};
  vmm::PassThroughInput input;
  PromotedOutput output(backends);
  ReplicaImage& image = session.image();
  const auto restored = vmm::Machine::restore(image.config(), image.take_memory(), image.state(), backends, input, output);
  timeline.promoted = now();
  restored->announce();
  output.watch_for_first_frame();
  restored->resume();
  {
    const std::lock_guard lock(mutex);
    machine = restored.get();
    if (stop_requested) restored->request_exit();
  }
  const vmm::MachineExit exit = run_promoted(*restored, output, std::move(timeline), backends.nic_count() > 0);
  {
    const std::lock_guard lock(mutex);
    machine = nullptr;
  }
  if (!restored->paused()) restored->pause();
  for (std::uint32_t i = 0; i < backends.disk_count(); ++i) (void)backends.disk({i}).sync();
  return {.machine = exit, .failed = false, .reason = "promoted"};
}

// Until it ends. The timeline is reported when it is complete; for a guest that sends nothing, after a while.
vmm::MachineExit Backup::Impl::run_promoted(vmm::Machine& promoted, const PromotedOutput& output,
                                            FailoverTimeline timeline, bool may_send) const {
  constexpr auto kLongestWait = 5s;
  bool reported = false;
  for (;;) {
    const auto exit = promoted.wait_for_exit(reported ? 1000ms : 5ms);
    if (!reported) {
      timeline.first_entry = promoted.first_entry();
      timeline.first_frame = output.first_frame();
      const bool complete = timeline.first_entry && (timeline.first_frame || !may_send);
      if (complete || exit || now() - timeline.promoted > kLongestWait) {
        report(timeline);
        reported = true;
        if (options.on_promoted) options.on_promoted(promoted);
      }
    }
    if (exit) return *exit;
  }
}

void Backup::Impl::report(const FailoverTimeline& timeline) const {
  spdlog::warn("{}", timeline.text());
  spdlog::warn("this machine runs unprotected now");
  if (options.timeline_path.empty()) return;
  std::ofstream file(options.timeline_path, std::ios::trunc);
  file << timeline.json();
  if (!file.flush()) spdlog::error("--timeline: cannot write {}", options.timeline_path);
}

}  // namespace pollux::backup
