#include "backup/backup.h"

#include <spdlog/spdlog.h>

#include <condition_variable>
#include <mutex>
#include <set>
#include <utility>

#include "backup/replication_session.h"
#include "base/error.h"

namespace pollux::backup {

using namespace std::chrono_literals;

namespace {

protocol::LinkOptions link_options(const BackupOptions& options) {
  protocol::LinkOptions link;
  link.stall_timeout = options.silence_timeout;
  return link;
}

}  // namespace

struct Backup::Impl {
  Impl(BackupOptions given, const protocol::session::SecretKey& own) : options(std::move(given)), key(own) {
    POLLUX_ASSERT(options.listen || !options.join.empty());
    if (!options.listen) return;
    listener = std::make_shared<protocol::Listener>(*options.listen, key, options.primary_keys,
                                                    link_options(options));
  }

  std::unique_ptr<protocol::Link> wait_for_primary();
  std::unique_ptr<protocol::Link> join_primary();
  void set_session(ReplicationSession* current);
  void say_once(const std::string& line);
  bool stopped_within(std::chrono::milliseconds time);

  BackupOptions options;
  const protocol::session::SecretKey& key;
  std::shared_ptr<protocol::Listener> listener;
  std::set<std::string> said;
  std::size_t next_join = 0;

  mutable std::mutex mutex;
  SessionStatus last_session;
  std::condition_variable changed;
  bool stop_requested = false;
  ReplicationSession* session = nullptr;  // while one runs
};

Backup::Backup(BackupOptions options, const protocol::session::SecretKey& key)
    : impl_(std::make_unique<Impl>(std::move(options), key)) {}
Backup::~Backup() = default;

std::uint16_t Backup::port() const { return impl_->listener ? impl_->listener->port() : 0; }

void Backup::stop() {
  const std::lock_guard lock(impl_->mutex);
  impl_->stop_requested = true;
  if (impl_->session != nullptr) impl_->session->stop();
  impl_->changed.notify_all();
}

BackupStatus Backup::status() const {
  const std::lock_guard lock(impl_->mutex);
  if (impl_->session == nullptr) return {impl_->options.join.empty() ? "waiting" : "joining", impl_->last_session};
  const SessionStatus session = impl_->session->status();
  return {std::string(to_string(session.state)), session};
}

bool Backup::Impl::stopped_within(std::chrono::milliseconds time) {
  std::unique_lock lock(mutex);
  return changed.wait_for(lock, time, [this] { return stop_requested; });
}

// What happens at every attempt is said once.
void Backup::Impl::say_once(const std::string& line) {
  constexpr std::size_t kMaxSaid = 32;
  if (said.size() >= kMaxSaid) said.clear();
  if (said.insert(line).second) spdlog::info("{}", line);
}

// Null: stopped.
std::unique_ptr<protocol::Link> Backup::Impl::wait_for_primary() {
  if (!options.join.empty()) return join_primary();
  while (!stopped_within(0ms)) {
    if (auto link = listener->accept(200ms)) {
      spdlog::info("primary connected from {}", link->peer_address());
      return link;
    }
  }
  return nullptr;
}

std::unique_ptr<protocol::Link> Backup::Impl::join_primary() {
  constexpr auto kRetryInterval = 500ms;
  for (auto pause = 0ms; !stopped_within(pause); pause = kRetryInterval) {
    const JoinPoint& point = options.join[next_join++ % options.join.size()];
    try {
      protocol::LinkOptions link = link_options(options);
      link.deadline = 1000ms;  // in slices, so that a mute peer does not delay the end for long
      return protocol::Link::connect(point.address, key, point.key, link);
    } catch (const protocol::LinkError& failure) {
      say_once(std::string(failure.what()) + "; trying again");
    }
  }
  return nullptr;
}

BackupEnd Backup::run(vmm::Backends& backends) {
  for (;;) {
    auto link = impl_->wait_for_primary();
    if (!link) return {.reason = "stopped before a primary came"};
    ReplicationSession session(std::move(link), backends,
                               {impl_->options.heartbeat_interval, impl_->options.silence_timeout},
                               impl_->options.staging_bytes,
                               [&](const vmm::MachineConfig& config, ByteView state) {
                                 rehearse_restore(config, state, backends);
                               },
                               impl_->options.claim, impl_->options.lockstep);
    impl_->set_session(&session);
    const SessionOutcome outcome = session.run();
    impl_->set_session(nullptr);
    if (outcome.promote) {
      ReplicaImage& image = session.image();
      return {.promotion = Promotion{.config = image.config(),
                                     .memory = image.take_memory(),
                                     .state = image.take_state(),
                                     .executing = session.take_machine(),
                                     .uncertain_io = outcome.uncertain_io,
                                     .epoch_length = impl_->options.lockstep.epoch_length,
                                     .vm = outcome.vm,
                                     .term = outcome.term,
                                     .timeline = {.epoch = outcome.epoch,
                                                  .reason = outcome.reason,
                                                  .epoch_received = outcome.epoch_received,
                                                  .last_heard = outcome.last_heard,
                                                  .detected = outcome.detected,
                                                  .promoted = {},
                                                  .first_entry = {},
                                                  .first_frame = {}},
                                     .listener = impl_->listener},
              .failed = false,
              .reason = "promoted"};
    }
    // Who joined a machine that does not fit here would refuse it again and again.
    const bool joins = !impl_->options.join.empty();
    const bool again = outcome.again && !(joins && outcome.failed);
    if (!again) return {.failed = outcome.failed, .fenced = outcome.fenced, .reason = outcome.reason};
    impl_->say_once(outcome.reason + (joins ? ": trying again" : ": waiting for another primary"));
    if (joins) (void)impl_->stopped_within(500ms);
  }
}

void Backup::Impl::set_session(ReplicationSession* current) {
  const std::lock_guard lock(mutex);
  if (session != nullptr) last_session = session->status();
  session = current;
  if (session != nullptr && stop_requested) session->stop();
}

}  // namespace pollux::backup
