// A primary: a machine on this host, protected by up to three backups: those it was started with, and those that join.
//
// Threads, and what each owns:
//   main (run())     the machine's controlling thread: epochs, full sync                       EpochEngine
//   replica          the protocol state machine, the list of backups; releases outputs         ReplicaDriver
//   joining          waits for backups that want to join                                       JoinListener
//   shipper, a backup each     encrypts and sends                                              Shipper
//   image writer     committed disk writes                                                     HoldingGate
//   link I/O, a link each      sockets, decryption                                             protocol::Link
//   vCPUs and devices          the machine's own                                               vmm::Machine
// They talk through the EngineMailbox (to the engine) and ReplicaDriver::post() (to the state machine).
#pragma once

#include <chrono>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/error.h"
#include "primary/engine_mailbox.h"
#include "primary/lockstep_options.h"
#include "primary/replica_driver.h"
#include "primary/statistics.h"
#include "protocol/claim.h"
#include "protocol/link/link.h"
#include "vmm/gates/output_gate.h"
#include "vmm/machine/backends.h"
#include "vmm/machine/machine.h"

namespace pollux::primary {

struct BackupAddress {
  protocol::Address address;
  protocol::session::PublicKey key;
};

// A machine that another primary has led so far.
struct Succession {
  protocol::VmId vm;
  protocol::Term term;  // won: it is led here in this term
  protocol::EpochId epoch;  // its epochs go on from here
};

struct PrimaryOptions {
  std::vector<BackupAddress> backups;  // up to protocol::kMaxBackups; none only with a listener
  std::vector<protocol::session::PublicKey> join_keys;  // of the backups that add_backup() may name
  // Where backups may join while the machine runs; null: nowhere.
  std::shared_ptr<protocol::Listener> listener;
  std::optional<Succession> succession;  // nothing: a new machine, whose first term is claimed
  protocol::Strategy strategy = protocol::Strategy::kCopy;
  std::chrono::milliseconds epoch_length{20};  // copy
  LockstepOptions lockstep;
  std::chrono::milliseconds heartbeat_interval{100};
  std::chrono::milliseconds silence_timeout{1000};
  std::chrono::milliseconds connect_timeout{10'000};
  protocol::Claim claim;  // of terms, for this replica; empty: no arbiter
  std::uint64_t staging_bytes = 256 << 20;  // page copies on their way to the backups
  std::uint64_t held_bytes = 64 << 20;      // outputs waiting for their commit
  std::string statistics_path;              // empty: none
  bool status_line = false;                 // a live line on standard error
  // Called on run()'s thread several times a second while the machine runs; may be empty.
  std::function<void(const vmm::Machine&)> on_turn;
};

// Another replica leads the machine: nothing leaves this host any more.
class FencedError : public Error {
 public:
  using Error::Error;
};

struct PrimaryStatus {
  protocol::VmId vm;
  ReplicaStatus replica;
  std::string protection;  // Statistics::set_protection()
  std::string guest;       // running, paused, handing over, waits for the arbiter
};

class Primary {
 public:
  explicit Primary(PrimaryOptions options);
  ~Primary();

  // Builds the machine (`make_machine` is given the gate to build it on), connects to the backups, then protects and
  // runs it until it ends, and returns how. Throws Error when backups were named and none can be reached in time (those
  // that can are enough), FencedError when another replica leads, and when this host failed (an image refused a committed write, KVM could not go on) and a backup takes
  // over.
  using MakeMachine = std::function<std::unique_ptr<vmm::Machine>(vmm::OutputGate&)>;
  vmm::MachineExit run(const protocol::session::SecretKey& key, vmm::Backends& backends,
                       const MakeMachine& make_machine);

  // How run() ended: another replica leads the machine, as was asked for.
  [[nodiscard]] bool handed_over() const;

  // Any thread: an orderly end.
  void stop();
  // An operator's orders. Any thread, while run() runs; each returns in bounded time, and throws Error saying why when it
  // was not done.
  // Nothing before the machine runs and after its end.
  [[nodiscard]] std::optional<PrimaryStatus> status() const;
  // The guest stands still at the end of an epoch, and everything it emitted is committed as usual; heartbeats, joining and
  // failover go on. A replica that takes over lets it run.
  void pause();
  void resume();
  // Connects to a `pollux backup --listen` with one of `join_keys`, and begins its full sync.
  protocol::BackupId add_backup(const protocol::Address& address);
  // A required one not before the arbiter has given this replica the term that it could claim.
  void drop_backup(protocol::BackupId backup);
  struct Switchover {
    protocol::BackupId to;
    std::chrono::nanoseconds stood_still{};  // the guest, until the answer of the one that leads now
  };
  // Lets this backup (nothing: the only one) lead the machine. When it returns the machine is led there.
  Switchover switch_over(std::optional<protocol::BackupId> to);
  [[nodiscard]] const Statistics& statistics() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace pollux::primary
