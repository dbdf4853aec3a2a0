// The signal that gets a thread out of KVM_RUN.
#pragma once

namespace pollux::vmm::kvm {

// Its handler does nothing; system calls it interrupts are not restarted.
int kick_signal();
// Before any thread may be kicked; the functions below do it, too.
void install_kick_handler();
// Lets this thread be kicked: the handler is there and the signal is not blocked.
void accept_kicks();
// And takes no other signal: those are for the process's main thread.
void accept_only_kicks();

}  // namespace pollux::vmm::kvm
