// What a deterministic machine's guest wrote, for the two that ask: the digest of every epoch, and whoever copies the
// memory while the guest runs. KVM tells each written page once, so what one of them takes is kept for the other.
//
// Pages are protected again by those who know that it pays: after an epoch, only the ones that did not change for some
// epochs (see PageDigests::kColdAfter); else all of them.
#pragma once

#include <vector>

#include "vmm/deterministic/digest.h"
#include "vmm/kvm/vcpu.h"
#include "vmm/kvm/vm.h"
#include "vmm/memory/guest_memory.h"

namespace pollux::vmm {

// Used while the vCPU is not inside run(). Nothing is logged, known or tracked at first.
class PageTracker {
 public:
  PageTracker(kvm::Vm& vm, GuestMemory& memory) : vm_(vm), memory_(memory), digests_(memory) {}
  // Before anything is asked for.
  void attach(kvm::Vcpu& vcpu) { vcpu_ = &vcpu; }

  // --- Digests ---

  // Of memory that was all zeros, and to which nobody but this process wrote.
  void know_fresh_memory();
  // Before the first epoch whose digest is asked for; of memory that nobody kept digests of, all of it is read.
  void know_digests();
  // The next epochs have none.
  void forget_digests();
  // At an epoch's end: pages that may have changed in it, and what did.
  [[nodiscard]] std::vector<Gfn> take_suspects() { return written_pages(); }
  [[nodiscard]] PageDigests::Update update(const std::vector<Gfn>& suspects);
  // See DeterministicMachine::altered_pages().
  [[nodiscard]] std::vector<Gfn> altered() const;

  // --- Tracking: see Machine ---

  void start();
  void stop();
  [[nodiscard]] std::vector<Gfn> harvest();

  // In the midst of an epoch, when KVM can tell no more.
  void make_room();

 private:
  void log_writes();
  void stop_logging();
  [[nodiscard]] std::vector<Gfn> written_pages();
  [[nodiscard]] std::vector<Gfn> take_and_protect();
  void protect(const std::vector<Gfn>& pages);
  void keep_for_tracking(const std::vector<Gfn>& written);

  kvm::Vm& vm_;
  GuestMemory& memory_;
  kvm::Vcpu* vcpu_ = nullptr;
  PageDigests digests_;
  bool logging_ = false;   // KVM tells what is written: while tracking_ or known_, but for know_fresh_memory()
  bool tracking_ = false;  // start() to stop()
  bool known_ = false;     // digests_ are those of the memory, but for pages not taken yet
  std::vector<Gfn> kept_;  // while tracking: taken for digests, not yet told by harvest()
};

}  // namespace pollux::vmm
