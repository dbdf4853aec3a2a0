// A real machine on /dev/kvm running the page_writer guest: no disks, no NICs, nothing but vCPU and memory.
#pragma once

#include <chrono>
#include <functional>
#include <memory>
#include <string>

#include "tests/guests/page_writer.h"
#include "tests/support/eventually.h"
#include "vmm/gates/pass_through.h"
#include "vmm/make_machine.h"

namespace pollux::testing {

// Empty when /dev/kvm can be used here; else why not, for GTEST_SKIP.
std::string why_no_kvm();

// What kMix computes, on a machine that nothing happens to.
std::uint64_t undisturbed_checksum(std::uint64_t memory_bytes, std::uint64_t pages, std::uint64_t seed, std::uint64_t steps);

std::unique_ptr<vmm::Backends> no_backends();
vmm::MachineConfig page_writer_config(std::uint64_t memory_bytes);
vmm::BootSource page_writer_source();

// The control page of a page_writer guest, through the host's view of its memory.
class PageWriter {
 public:
  explicit PageWriter(vmm::GuestMemory& memory) : memory_(memory) {}

  // Asks for a mode; the guest notices while it runs. Marks the control page dirty.
  void request(guests::WriterMode mode, std::uint64_t pages, std::uint64_t seed = 0, std::uint64_t steps = 0);
  // An endless kMix has done enough: it is served soon, and `steps()` says how far it came.
  void finish();
  // The last request is done (or, for kCycle, under way).
  [[nodiscard]] bool served() const;
  [[nodiscard]] bool wait_until_served() const;
  // Of a kMix that is served.
  [[nodiscard]] std::uint64_t steps() const;
  [[nodiscard]] std::uint64_t rounds() const;
  [[nodiscard]] std::uint64_t checksum() const;

 private:
  vmm::GuestMemory& memory_;
  std::uint64_t request_ = 0;
};

// The machine, passing gates.
class TestMachine {
 public:
  explicit TestMachine(std::uint64_t memory_bytes, vmm::MachineOptions options = {});
  // What `state` says, on `memory`.
  TestMachine(std::unique_ptr<vmm::GuestMemory> memory, ByteView state, vmm::MachineOptions options = {});

  [[nodiscard]] vmm::Machine& machine() { return *machine_; }
  [[nodiscard]] PageWriter writer() { return PageWriter(machine_->memory()); }

 private:
  std::unique_ptr<vmm::Backends> backends_;
  vmm::PassThroughInput input_;
  vmm::PassThroughOutput output_;
  std::unique_ptr<vmm::Machine> machine_;
};

// The control page itself: what is written there is not marked dirty.
guests::WriterControl* writer_control(const vmm::GuestMemory& memory);

// From here on neither host nor guest can touch this page: KVM_RUN fails with EFAULT when the guest does.
void take_away_page(const vmm::GuestMemory& memory, vmm::GuestAddress address);

// A copy of all of a paused machine's memory.
std::unique_ptr<vmm::GuestMemory> copy_of(const vmm::GuestMemory& memory);
// The first frame in which they differ; nothing when equal.
std::optional<vmm::Gfn> first_difference(const vmm::GuestMemory& a, const vmm::GuestMemory& b);

}  // namespace pollux::testing
