// A campaign: two replicas of a key-value server and an arbiter as real processes, clients, faults one after the other by a
// schedule, protection restored after each; then the checkers.
#pragma once

#include <chrono>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "chaos/fault_schedule.h"
#include "chaos/frame_capture.h"
#include "chaos/host.h"
#include "chaos/run_record.h"
#include "chaos/topology.h"
#include "chaos/workload.h"

namespace pollux::chaos {

struct CampaignOptions {
  ScheduleOptions schedule;
  std::filesystem::path folder;  // for logs, disks, keys; must be there
  std::string pollux;            // the program whose replicas are harmed
  std::string guest;             // kv_server
  std::string disk_faults;       // libpollux-disk-faults.so
  std::uint64_t clients = 4;
  std::uint64_t timeout_ms = 800;  // of the replicas
  std::uint64_t epoch_ms = 20;
  std::string strategy = "copy";
  // A machine that is not protected, and answers, so long after a fault never will be.
  std::chrono::seconds recovery_limit{60};
  bool without_arbiter = false;  // each replica decides alone: the promise cannot hold, and the checkers must say so
  std::string command;                                  // that repeats the run, for the report
  std::function<void(const std::string& line)> progress;  // what happens, as it happens
  std::function<bool()> interrupted;                      // asked often: true ends the campaign early
};

class Campaign {
 public:
  static constexpr std::chrono::milliseconds kSettle{300};
  static constexpr std::chrono::milliseconds kTick{10};

  // In a namespace of its own (enter_namespace()), on the thread that goes on living: replicas die with it. Throws Error.
  explicit Campaign(CampaignOptions options);
  ~Campaign();

  // Throws Error when the campaign cannot be begun; what goes wrong later is a violation.
  [[nodiscard]] RunRecord run();

 private:
  struct Over {};  // thrown to end it: the violation is noted

  void begin();
  void run_faults();
  void strike(FaultRecord& record);
  void strike_arbiter(FaultRecord& record);
  void strike_in_sync(FaultRecord& record);
  void strike_disk(FaultRecord& record, Host& host);
  void strike_memory(FaultRecord& record, Host& host);
  void strike_in_promotion(FaultRecord& record, Host& primary);
  void boot_anew(FaultRecord& record, Host& host);
  void kill_in_switchover(FaultRecord& record, std::size_t terms_before);
  void strike_switchover(FaultRecord& record, Host& primary);
  void recover(FaultRecord& record, std::size_t leader_before);
  void drain();
  void judge();

  // Tends the hosts until `condition`, looked at every `tick`, holds. False: not by `deadline`.
  template <class Condition>
  bool wait(Stopwatch::Clock::time_point deadline, Condition condition, std::chrono::milliseconds tick = kTick);
  void wait_for(std::chrono::milliseconds time);
  void tend();
  void kill(Host& host);
  void judge_end(Host& host, const ReplicaEnd& end);
  [[nodiscard]] bool is_protected(Stopwatch::Clock::time_point told_after) const;
  // The host that leads, by what they say: the one of the highest term.
  [[nodiscard]] std::optional<std::size_t> leader() const;
  Host& other_than(std::size_t host) { return *hosts_[1 - host]; }
  void set_links(const LinkConditions& conditions, bool forward = true, bool backward = true);
  void heal_links();
  void set_arbiter_reachable(bool reachable);
  void violate(const std::string& check, const std::string& evidence);
  void say(const std::string& line) const;

  const CampaignOptions options_;
  Stopwatch watch_;
  RunRecord record_;
  HistoryRecorder history_;
  std::string arbiter_;
  RoleTracker roles_;
  std::unique_ptr<Topology> topology_;
  std::vector<std::unique_ptr<Host>> hosts_;
  std::unique_ptr<FrameCapture> capture_;
  std::unique_ptr<Workload> workload_;
  std::size_t machine_ = 0;  // how often the guest was booted anew
  bool repairing_ = false;  // a host whose replica ended gets another one
  bool drained_ = false;  // both images are final
};

}  // namespace pollux::chaos
