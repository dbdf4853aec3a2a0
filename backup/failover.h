// From a dead primary to a running guest: builds the machine from the image, tells the network, keeps the times.
#pragma once

#include <atomic>
#include <chrono>
#include <memory>
#include <mutex>
#include <optional>
#include <string>

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

// The gate of a promoted machine: passes everything and notes when the guest is first heard.
class PromotedOutput final : public vmm::OutputGate {
 public:
  explicit PromotedOutput(vmm::Backends& backends) : pass_(backends) {}

  // From here on a frame is the guest's own: what came before was the announcement.
  void watch_for_first_frame() { watching_ = true; }
  [[nodiscard]] std::optional<protocol::TimePoint> first_frame() const {
    const protocol::TimePoint at = first_frame_;
    return at == protocol::TimePoint{} ? std::nullopt : std::optional(at);
  }

  [[nodiscard]] bool transmit(vmm::NicIndex nic, ByteView frame) override {
    if (watching_.exchange(false)) first_frame_ = std::chrono::steady_clock::now();
    return pass_.transmit(nic, frame);
  }
  void on_room(std::function<void()> callback) override { pass_.on_room(std::move(callback)); }
  void console(vmm::ConsoleIndex console, ByteView bytes) override { pass_.console(console, bytes); }
  [[nodiscard]] bool read(vmm::DiskIndex disk, std::uint64_t offset, MutableByteView into) override {
    return pass_.read(disk, offset, into);
  }
  [[nodiscard]] bool write(vmm::DiskIndex disk, std::uint64_t offset, ByteView from) override {
    return pass_.write(disk, offset, from);
  }
  [[nodiscard]] bool discard(vmm::DiskIndex disk, std::uint64_t offset, std::uint64_t length) override {
    return pass_.discard(disk, offset, length);
  }
  [[nodiscard]] bool flush(vmm::DiskIndex disk) override { return pass_.flush(disk); }

 private:
  vmm::PassThroughOutput pass_;
  std::atomic<bool> watching_ = false;
  std::atomic<protocol::TimePoint> first_frame_{};
};

}  // namespace pollux::backup
