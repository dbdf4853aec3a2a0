// What happens next: ordered by time, then by when it was scheduled.
#pragma once

#include <cstdint>
#include <queue>
#include <vector>

#include "random.h"

namespace pollux::sim {

// A replica: one process, from its start to its end. Those the world begins with are the primary, 0, and its backups; those that
// are started later count on. A backup that is promoted stays the replica that it was.
struct HostId {
  std::uint8_t value = 0;
  auto operator<=>(const HostId&) const = default;
};

enum class EventKind : std::uint8_t {
  kConnect,       // the link from the first primary to its backup `value` comes up
  kTend,          // site `value` looks after its replica: a new one where the old is over, another try to join
  kDeliver,       // segment `value2` of link `value` arrives
  kSendAgain,     // segment `value2` of link `value` was not acknowledged in time
  kTick,          // the state machine's deadline
  kEpoch,         // the guest's epoch ends
  kSyncStep,      // the full sync of backup `value` goes on
  kDisk,          // the disk finished a job
  kExamined,      // the backup looked at the Hello
  kClaimArrives,  // at the arbiter: term `value`
  kClaimAnswer,   // at the claimant: term `value`, verdict `value2`
  kLead,          // the promoted backup runs the machine
  kFault,         // number `value`
  kFaultEnds,
  kCalm,  // every fault ends
  kCheckProgress,
};

struct Event {
  Time at{};
  std::uint64_t sequence = 0;
  EventKind kind{};
  HostId host;
  std::uint64_t value = 0;
  std::uint32_t value2 = 0;
};

class EventQueue {
 public:
  void push(Event event) {
    event.sequence = next_sequence_++;
    heap_.push(event);
  }
  [[nodiscard]] bool empty() const { return heap_.empty(); }
  Event pop() {
    const Event event = heap_.top();
    heap_.pop();
    return event;
  }

 private:
  struct Later {
    bool operator()(const Event& a, const Event& b) const {
      return a.at != b.at ? a.at > b.at : a.sequence > b.sequence;
    }
  };
  std::priority_queue<Event, std::vector<Event>, Later> heap_;
  std::uint64_t next_sequence_ = 0;
};

}  // namespace pollux::sim
