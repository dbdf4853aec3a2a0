#include "chaos/host.h"

#include <fmt/format.h>

#include <csignal>
#include <sys/wait.h>
#include <fstream>
#include <random>

#include "base/error.h"

namespace pollux::chaos {
namespace {

// The namespace is the campaign's own: its ports are free.
constexpr std::uint16_t kFirstPort = 7701;
constexpr const char* kGuestMac = "52:54:00:70:6f:6c";
constexpr std::size_t kDiskBytes = 4 << 20;

// Hosts begin with different disks: what is equal in the end was made equal.
void make_disk(const std::string& path, std::size_t seed) {
  std::mt19937_64 random(seed);
  std::ofstream file(path, std::ios::binary | std::ios::trunc);
  for (std::size_t i = 0; i < kDiskBytes / sizeof(std::uint64_t); ++i) {
    const std::uint64_t word = random();
    file.write(reinterpret_cast<const char*>(&word), sizeof word);
  }
  if (!file.flush()) throw errno_error("write", path);
}

}  // namespace

Host::Host(std::size_t number, const std::string& name, const std::filesystem::path& folder,
           const ReplicaSettings& settings, const Stopwatch& watch, RoleTracker& roles)
    : number_(number),
      name_(name),
      folder_(folder),
      settings_(settings),
      watch_(watch),
      roles_(roles),
      port_(static_cast<std::uint16_t>(kFirstPort + number)),
      key_((folder / (name + ".key")).string()),
      disk_((folder / (name + ".disk")).string()),
      disk_faults_(settings.disk_faults, (folder / (name + ".disk-faults")).string(), disk_),
      proxy_(port_) {
  make_disk(disk_, number);
  make_key();
}

void Host::make_key() const {
  ChildProcess keygen({settings_.pollux, "keygen", key_}, (folder_ / "keygen.log").string());
  siginfo_t ended{};
  if (::waitid(P_PID, static_cast<id_t>(keygen.pid()), &ended, WEXITED | WNOWAIT) != 0) throw errno_error("wait for", "keygen");
  if (keygen.exit_code() != 0) throw Error(settings_.pollux + " keygen failed: see " + (folder_ / "keygen.log").string());
}

std::vector<std::string> Host::common_words(const Host& other) const {
  return {"--listen", fmt::format("127.0.0.1:{}", port_),
          "--key", key_,
          "--peer-key", other.public_key(),
          "--arbiter", settings_.arbiter,
          "--timeout-ms", std::to_string(settings_.timeout_ms),
          "--heartbeat-ms", std::to_string(settings_.heartbeat_ms),
          "--epoch-ms", std::to_string(settings_.epoch_ms),
          "--held", "8M",
          "--disk", disk_,
          "--console", "none"};
}

void Host::start_primary(const Host& other, std::size_t machine) {
  machine_ = machine;
  std::vector<std::string> words{settings_.pollux, "primary",
                                 "--profile", "deterministic",
                                 "--strategy", settings_.strategy,
                                 "--kernel", settings_.guest,
                                 "--cmdline", "journal=1 ip=" + settings_.guest_ip,
                                 "--memory", "32M",
                                 "--staging", "16M",
                                 "--net", fmt::format("tap={},mac={}", tap(), kGuestMac)};
  for (const std::string& word : common_words(other)) words.push_back(word);
  start(std::move(words));
}

void Host::start_backup(Host& other) {
  machine_ = other.machine_;
  std::vector<std::string> words{settings_.pollux, "backup",
                                 "--join", fmt::format("127.0.0.1:{}", other.proxy_.port()),
                                 "--staging", "192M",
                                 "--primary-staging", "16M",
                                 "--net", "tap=" + tap()};
  for (const std::string& word : common_words(other)) words.push_back(word);
  start(std::move(words));
}

void Host::start(std::vector<std::string> words) {
  POLLUX_ASSERT(!replica_);
  treatment_ = {};
  const std::string name = fmt::format("{}-{}", name_, past_.size() + 1);
  const std::string control = (folder_ / (name_ + ".control")).string();
  words.insert(words.end(), {"--control", control});
  roles_.note(number_, RoleSpan::Role::kStarting, 0, watch_.now());
  past_.push_back({name, number_, watch_.now(), {}, machine_});
  replica_ = std::make_unique<ReplicaProcess>(disk_faults_.loaded_into(words), (folder_ / (name + ".log")).string(), control,
                                              [this](const ReplicaStatus& status) { roles_.note(number_, status, watch_.now()); });
}

std::optional<ReplicaEnd> Host::kill() {
  if (!replica_) return std::nullopt;
  return end(replica_->process().kill_and_wait(), true);
}

std::optional<ReplicaEnd> Host::reap() {
  const auto code = replica_ ? replica_->process().exit_code() : std::nullopt;
  if (!code) return std::nullopt;
  return end(*code, false);
}

ReplicaEnd Host::end(int exit_code, bool killed) {
  past_.back().terms = replica_->terms();
  ReplicaEnd end{exit_code, killed, replica_->log()};
  std::ofstream(replica_->log_path(), std::ios::app) << "ended: " << exit_code << "\n";
  replica_.reset();
  roles_.note(number_, RoleSpan::Role::kDown, 0, watch_.now());
  return end;
}

std::vector<Incarnation> Host::incarnations() const {
  std::vector<Incarnation> all = past_;
  if (replica_) all.back().terms = replica_->terms();
  return all;
}

}  // namespace pollux::chaos
