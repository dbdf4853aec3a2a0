// Frames and console input on their way from the host's backends to a machine's input gate.
#pragma once

#include "vmm/gates/input_gate.h"
#include "vmm/io/event_loop.h"
#include "vmm/machine/backends.h"

namespace pollux::vmm {

// From here on until the loop is stopped, whatever the backends receive is offered to the gate, on the loop's thread.
// All three outlive the loop's thread.
void listen(Backends& backends, InputGate& gate, EventLoop& loop);

}  // namespace pollux::vmm
