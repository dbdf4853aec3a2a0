// The terminal on standard input, which a stdio console puts into raw mode.
#pragma once

namespace pollux::vmm {

// Undoes the raw mode, for ends of the process at which nothing is destroyed. Any thread, signal handlers too.
void restore_terminal();

}  // namespace pollux::vmm
