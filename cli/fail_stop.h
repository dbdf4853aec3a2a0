// What becomes of a process that gets no memory, or no thread, in the midst of its work.
#pragma once

namespace pollux::cli {

// From here on it ends at once, with one line and kFailureExit: to the other replicas a host that failed like any other. To go
// on would be to go on with a part of it. Other exceptions that nobody catches are mistakes in this program, and abort.
void fail_stop_without_resources();

}  // namespace pollux::cli
