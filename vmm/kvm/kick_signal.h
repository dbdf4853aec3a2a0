// The signal that gets a thread out of KVM_RUN.
#pragma once

namespace pollux::vmm::kvm {

// Its handler does nothing; system calls it interrupts are not restarted.
int kick_signal();
// Lets this thread be kicked: the handler is there and the signal is not blocked.
void accept_kicks();

}  // namespace pollux::vmm::kvm
