// What a deterministic guest is written with: its entry point, parameters, time, events.
//
// A guest is compiled by pollux_add_guest() (vmm/guest/CMakeLists.txt), runs at CPL3 on one CPU with the
// first 3 GiB of its RAM mapped, and has no operating system. Everything it cannot compute comes through the
// functions here and in block.h and net.h. It must not look at the time stamp counter or CPUID: two replicas
// of it would part.
#pragma once

#include <cstdint>

#include "vmm/guest/abi.h"
#include "vmm/guest/runtime/console.h"
#include "vmm/guest/runtime/memory.h"

// The guest itself. Its result is the exit code: 0 is success.
int guest_main();

namespace pollux::guest {

// --- Parameters: the command line, words of the form name=value ---

// Empty when there is no such word.
Text parameter(const char* name);
// Panics when the value is not a decimal number.
std::uint64_t parameter(const char* name, std::uint64_t otherwise);

// --- Environment values: an exit each ---

std::uint64_t clock_ns();  // since the Unix epoch; never goes backwards
std::uint64_t entropy();

// --- Events (guest_abi::k...Event) ---

// Those of `mask` that happened since they were last returned; none: 0.
std::uint64_t take_events(std::uint64_t mask);
// The same, but waits until there is one.
std::uint64_t wait_for_events(std::uint64_t mask);

// kTimerEvent once, when clock_ns() would say `due_ns` or later; 0: not any more.
void set_timer(std::uint64_t due_ns);
void sleep_until(std::uint64_t due_ns);

}  // namespace pollux::guest
