// One simulated world, made from one seed: sites, each with one replica at a time (first a primary and its backups; whoever
// is started later joins), an arbiter, a client, and everything that goes wrong. The state machines in it are the production ones; everything around them is a model. One
// thread, no clock, no sockets: the same seed gives the same world.
#pragma once

#include <fmt/format.h>

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "arbiter_model.h"
#include "backup_host.h"
#include "event_queue.h"
#include "faults.h"
#include "invariants.h"
#include "mutants.h"
#include "network.h"
#include "primary_host.h"
#include "protocol/timing.h"
#include "random.h"
#include "traffic.h"

namespace pollux::sim {

// What became of a world: a campaign in which nothing happens would prove nothing.
struct Outcome {
  bool protected_once = false;  // a backup acknowledged its full sync
  bool promoted = false;
  bool primary_fenced = false;
  bool backup_fenced = false;
  bool handed_over = false;   // the primary, as an operator wanted
  bool went_alone = false;    // the primary, with the last term
  bool machine_lost = false;  // nobody leads, and nobody ended it in an orderly way
  bool reprotected = false;   // a backup that joined acknowledged its full sync
  bool succeeded_twice = false;  // a backup of a promoted backup was promoted
  bool disk_failed = false;      // a replica ended for it
  bool member_claimed = false;   // a backup won the term after that of its own primary, of which it was not told
  Traffic traffic;
};

class World {
 public:
  // `trace`: called with each line of the trace; empty: no trace.
  World(std::uint64_t seed, Mutant mutant, std::function<void(const std::string&)> trace);
  ~World();

  // Throws Violation.
  void run();
  [[nodiscard]] Outcome outcome() const;

  // For what is in it.
  [[nodiscard]] Time now() const { return now_; }
  [[nodiscard]] Random& random() { return random_; }
  [[nodiscard]] Network& network() { return network_; }
  [[nodiscard]] Checker& checker() { return checker_; }
  [[nodiscard]] const ArbiterModel& arbiter() const { return arbiter_; }
  [[nodiscard]] const protocol::Timing& timing() const { return timing_; }
  [[nodiscard]] Time epoch_length() const { return epoch_length_; }
  [[nodiscard]] Outcome& seen() { return seen_; }
  // The promoted backup runs the machine from here on, as a primary.
  void succeed(BackupHost& promoted);
  void schedule(Time at, EventKind kind, HostId host = {}, std::uint64_t value = 0,
                std::uint32_t value2 = 0) {
    queue_.push({at, 0, kind, host, value, value2});
  }
  void claim(HostId claimant, protocol::Term term, std::vector<HostId> members);
  void moment(Moment moment);
  // A line of the trace.
  void remark(const char* what) {
    if (trace_) note(what);
  }
  // The host's process ends: its links do, too.
  void dies(Host& host) { cut_off(host, false); }
  [[nodiscard]] Mutant mutant() const { return mutant_; }
  void require(bool holds, const char* what) const {
    if (!holds) throw Violation(what);
  }
  template <class Step, class Effects>
  void note_step(const Host& host, const Step& step, const Effects& effects) {
    if (trace_) trace_step(host, to_string(step), lines(effects));
  }

 private:
  template <class Effects>
  static std::vector<std::string> lines(const Effects& effects) {
    std::vector<std::string> lines;
    for (const auto& effect : effects) lines.push_back(to_string(effect));
    return lines;
  }
  void trace_step(const Host& host, const std::string& step, const std::vector<std::string>& effects);
  void note(const std::string& what);

  // The two ends of a link.
  struct Ends {
    PrimaryHost* primary;
    BackupHost* backup;
  };

  void dispatch(const Event& event);
  void connect(std::size_t backup);
  std::size_t link(PrimaryHost& primary, BackupHost& backup);
  void tend(std::size_t site);
  void start_replica(std::size_t site);
  void join(BackupHost& joiner);
  void claim_arrives(const Event& event);
  void begin(std::size_t fault);
  void end(std::size_t fault);
  void cut_off(Host& host, bool silently);
  void calm();
  // True: outputs flow, or everybody has ended as they may.
  [[nodiscard]] bool came_to_a_good_end(std::string& what_lacks) const;
  // Who runs the machine: of those who believe it, the one with the latest term. Null: nobody.
  [[nodiscard]] PrimaryHost* leader() const;
  [[nodiscard]] Host& host(HostId id) const { return *replicas_[id.value]; }
  [[nodiscard]] Host& at(std::size_t site) const { return *replicas_[sites_[site].value]; }
  [[nodiscard]] BackupHost* backup_at(std::size_t site) const;    // null: none
  [[nodiscard]] PrimaryHost* primary_at(std::size_t site) const;  // null: none
  template <class Kind, class... Arguments>
  Kind& add(Arguments&&... arguments);

  Random random_;
  std::function<void(const std::string&)> trace_;
  EventQueue queue_;
  Time now_{};
  protocol::Timing timing_;
  Time epoch_length_{};
  const std::size_t backup_count_;
  Network network_;
  Checker checker_;
  ArbiterModel arbiter_;
  std::vector<Fault> faults_;
  // What a fault that will end has struck.
  struct Struck {
    HostId host;
    std::size_t link = 0;
  };
  std::vector<Struck> struck_;  // by fault
  std::vector<int> arbiter_unreachable_;  // by site: faults that make it so
  int arbiter_slow_ = 0;
  std::map<std::pair<HostId, protocol::Term>, std::vector<HostId>> claimed_;  // the members of each claim, also of one on its way
  bool calm_ = false;
  bool done_ = false;
  std::vector<std::uint64_t> released_at_calm_;  // by HostId
  bool restarts_ = false;  // before the faults end; after that always
  const Mutant mutant_;
  Outcome seen_;
  std::vector<std::unique_ptr<Host>> ever_;    // also what they were before a promotion
  std::vector<Host*> replicas_;                // by HostId
  std::vector<HostId> sites_;                  // each site's replica
  std::vector<Ends> links_;
};

}  // namespace pollux::sim
