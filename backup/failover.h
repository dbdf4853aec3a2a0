// From a dead primary to a running guest: what is left of the backup, the machine made of it, and the times it took.
//
// Whoever gets the Promotion runs the machine; protecting it again is no matter of the backup's.
#pragma once

#include <atomic>
#include <chrono>
#include <memory>
#include <optional>
#include <string>

#include "backup/lockstep_replica.h"
#include "backup/replication_session.h"
#include "vmm/gates/pass_through.h"
#include "vmm/machine/machine.h"

namespace pollux::backup {

// When each step of a failover happened.
struct FailoverTimeline {
  protocol::EpochId epoch;
  std::string reason;
  protocol::TimePoint epoch_received;
  protocol::TimePoint last_heard;
  protocol::TimePoint detected;
  protocol::TimePoint promoted;      // the machine is restored
  std::optional<protocol::TimePoint> first_entry;  // of a vCPU into the guest
  std::optional<protocol::TimePoint> first_frame;  // the guest's first, after the announcement

  // Several lines for people; milliseconds count from the last byte heard of the primary.
  [[nodiscard]] std::string text() const;
  [[nodiscard]] std::string json() const;
};

// Throws Error when this host cannot restore the machine from `state`: better now than when the primary is dead.
void rehearse_restore(const vmm::MachineConfig& config, ByteView state, vmm::Backends& backends);

// Before the gate of a promoted machine: passes everything on and notes when the guest is first heard.
class PromotedOutput final : public vmm::OutputGate {
 public:
  explicit PromotedOutput(vmm::OutputGate& gate) : gate_(gate) {}

  // From here on a frame is the guest's own: what came before was the announcement.
  void watch_for_first_frame() { watching_ = true; }
  [[nodiscard]] std::optional<protocol::TimePoint> first_frame() const {
    const protocol::TimePoint at = first_frame_;
    return at == protocol::TimePoint{} ? std::nullopt : std::optional(at);
  }

  [[nodiscard]] bool transmit(vmm::NicIndex nic, ByteView frame) override {
    if (watching_.exchange(false)) first_frame_ = std::chrono::steady_clock::now();
    return gate_.transmit(nic, frame);
  }
  void on_room(std::function<void()> callback) override { gate_.on_room(std::move(callback)); }
  void console(vmm::ConsoleIndex console, ByteView bytes) override { gate_.console(console, bytes); }
  [[nodiscard]] bool read(vmm::DiskIndex disk, std::uint64_t offset, MutableByteView into) override {
    return gate_.read(disk, offset, into);
  }
  [[nodiscard]] bool write(vmm::DiskIndex disk, std::uint64_t offset, ByteView from) override {
    return gate_.write(disk, offset, from);
  }
  [[nodiscard]] bool discard(vmm::DiskIndex disk, std::uint64_t offset, std::uint64_t length) override {
    return gate_.discard(disk, offset, length);
  }
  [[nodiscard]] bool flush(vmm::DiskIndex disk) override { return gate_.flush(disk); }

 private:
  vmm::OutputGate& gate_;
  std::atomic<bool> watching_ = false;
  std::atomic<protocol::TimePoint> first_frame_{};
};

// The machine at the end of the last whole epoch, in a term that is won.
struct Promotion {
  vmm::MachineConfig config;
  // Of copy. In lockstep the machine is there already, and this must outlive the one that restore() returns.
  std::unique_ptr<vmm::GuestMemory> memory;
  Bytes state;
  std::unique_ptr<ExecutingMachine> executing;
  [[nodiscard]] bool lockstep() const { return executing != nullptr; }
  bool uncertain_io = false;  // requests that are outstanding at its devices end as uncertain
  vmm::EpochLength epoch_length;  // of a deterministic machine that runs freely
  protocol::VmId vm;
  protocol::Term term;
  FailoverTimeline timeline;  // up to the detection
  std::shared_ptr<protocol::Listener> listener;  // the backup's own, open; null: it had none

  // Once: builds the machine (paused), tells the network, and notes the time. From here on the first frame is awaited.
  [[nodiscard]] std::unique_ptr<vmm::Machine> restore(vmm::Backends& backends, vmm::InputGate& input,
                                                      PromotedOutput& output);
};

// Tells the timeline as soon as it is complete; of a guest that sends nothing, after a while.
class FailoverReport {
 public:
  // `may_send`: the guest has a NIC. `path`: the timeline as JSON; empty: none.
  FailoverReport(const PromotedOutput& output, bool may_send, std::string path);

  // The machine runs. To be called several times a second, by one thread.
  void look(FailoverTimeline& timeline, const vmm::Machine& machine);
  // The machine ended: no later chance.
  void finish(const FailoverTimeline& timeline);

 private:
  void tell(const FailoverTimeline& timeline);

  const PromotedOutput& output_;
  const bool may_send_;
  const std::string path_;
  bool told_ = false;
};

}  // namespace pollux::backup
