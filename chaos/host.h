// One of the two hosts of a campaign: its files, its place in the network, and the replica that runs there, if one does.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "chaos/answer_frames.h"
#include "chaos/disk_faults.h"
#include "chaos/link_proxy.h"
#include "chaos/replica.h"
#include "chaos/replica_end.h"
#include "chaos/role_tracker.h"
#include "chaos/stopwatch.h"

namespace pollux::chaos {

// What every replica of a campaign is started with.
struct ReplicaSettings {
  std::string pollux;   // the program
  std::string guest;    // its kernel, kv_server
  std::string disk_faults;  // libpollux-disk-faults.so
  std::string arbiter;  // as --arbiter takes it
  std::string guest_ip;
  std::uint64_t timeout_ms = 800;
  std::uint64_t heartbeat_ms = 50;
  std::uint64_t epoch_ms = 20;
  std::string strategy = "copy";
};

class Host {
 public:
  // `name` names its files in `folder`, its TAP is "tap-NAME". Throws Error.
  Host(std::size_t number, const std::string& name, const std::filesystem::path& folder, const ReplicaSettings& settings,
       const Stopwatch& watch, RoleTracker& roles);

  [[nodiscard]] const std::string& name() const { return name_; }
  [[nodiscard]] std::string tap() const { return tap_name(name_); }
  [[nodiscard]] static std::string tap_name(const std::string& name) { return "tap-" + name; }
  // The link by which others reach it.
  [[nodiscard]] LinkProxy& link() { return proxy_; }
  [[nodiscard]] DiskFaults& disk_faults() { return disk_faults_; }
  [[nodiscard]] const std::string& disk() const { return disk_; }
  [[nodiscard]] std::string public_key() const { return key_ + ".pub"; }

  // Nothing may run here. `machine`: how often the guest was booted before (Incarnation). A backup's is its primary's.
  void start_primary(const Host& other, std::size_t machine = 0);
  void start_backup(Host& other);

  [[nodiscard]] bool runs() const { return replica_ != nullptr; }
  [[nodiscard]] ReplicaProcess& replica() { return *replica_; }
  // What it last said; empty when nothing runs here.
  [[nodiscard]] ReplicaStatus status() const { return replica_ ? replica_->status() : ReplicaStatus{}; }
  // What was done to it since it was started: whoever harms it writes that down here.
  [[nodiscard]] Treatment& treatment() { return treatment_; }
  // Then nothing runs here. Nothing: nothing did.
  [[nodiscard]] std::optional<ReplicaEnd> kill();
  // Once, when it has ended by itself; then nothing runs here.
  [[nodiscard]] std::optional<ReplicaEnd> reap();
  // Everything that ran here, with the terms it won.
  [[nodiscard]] std::vector<Incarnation> incarnations() const;

 private:
  void make_key() const;
  void start(std::vector<std::string> words);
  [[nodiscard]] std::vector<std::string> common_words(const Host& other) const;
  ReplicaEnd end(int exit_code, bool killed);

  const std::size_t number_;
  const std::string name_;
  const std::filesystem::path folder_;
  const ReplicaSettings settings_;
  const Stopwatch& watch_;
  RoleTracker& roles_;
  const std::uint16_t port_;
  const std::string key_;
  const std::string disk_;
  DiskFaults disk_faults_;
  LinkProxy proxy_;
  std::vector<Incarnation> past_;  // the last one is the one that runs
  std::size_t machine_ = 0;
  Treatment treatment_;
  std::unique_ptr<ReplicaProcess> replica_;
};

}  // namespace pollux::chaos
