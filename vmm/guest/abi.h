// What a deterministic guest and the machine under it agree on: the counter, the epoch device, events.
//
// Plain constants, used by both sides; freestanding. "Site": a place where the compiler plugin counts.
//
// The machine: one vCPU, no interrupt controller, no timer, no ACPI, no port I/O; RAM; the virtio-mmio
// windows, probed by their magic value; and the epoch device. The guest is an ELF64 executable entered at
// CPL0 as by the 64-bit boot protocol (vmm/boot/long_mode.h), and spends its life at CPL3.
#pragma once

#include <cstdint>

namespace pollux::guest_abi {

// --- The counter ---
//
// Register r15 belongs to it. Every site takes 1 from it and goes on while the result is not negative; else
// it loads the next epoch's count from kEpochEnd, by an 8-byte load into r15 and nothing else. A count of n
// >= 0 therefore lets n sites pass and ends the epoch in the next one; n = 0 ends an epoch in every site.
// What takes long for one site, a device access or a copy, takes more from the register; what it takes beyond
// an epoch's end is forgotten. The guest's start loads kEpochEnd before its first site: what it did until
// then is an epoch of its own. Wherever an epoch ends, every arithmetic flag was defined by the instruction
// before.
inline constexpr std::uint64_t kMaxCount = std::uint64_t{1} << 62;
inline constexpr std::uint64_t kDeviceAccessCount = 1000;  // an exit: as long as about as many sites
inline constexpr std::uint64_t kCopiedBytesPerCount = 64;

// --- The epoch device ---
//
// Registers are naturally aligned and accessed with 8 bytes, kConsole also with 1, 2 or 4, kPowerOff with 4.
// Any other access reads as all ones and writes nothing.
inline constexpr std::uint64_t kEpochDevice = 0xd010'0000;  // guest-physical; one page
inline constexpr std::uint64_t kEpochDeviceBytes = 0x1000;
// Where the runtime maps the same page for itself: within reach of a 32-bit displacement. No matter of the
// machine's.
inline constexpr std::uint64_t kEpochDeviceVirtual = 0x1000;

enum EpochRegister : std::uint64_t {
  // R: the counter expired. Ends the epoch; the value is the next epoch's count.
  kEpochEnd = 0x00,
  // R: the guest has nothing to do. Ends the epoch before the counter does; the value is the next epoch's
  // count. The
  // machine may block until there is an event, but never while the event word is not zero (an event may have
  // been
  // delivered after the guest looked), and may return without one: the guest looks again.
  kWait = 0x08,
  // R: environment value: nanoseconds since the Unix epoch, never less than before.
  kClockNs = 0x10,
  // R: environment value: 64 random bits.
  kEntropy = 0x18,
  // W: 1, 2, 4 or 8 bytes of console output, the lowest first.
  kConsole = 0x20,
  // W: when, in terms of kClockNs, kTimerEvent is due; 0: never. Delivered once, at the first epoch end whose
  // clock is
  // not earlier; then the register is 0.
  kTimerNs = 0x28,
  // W: the machine ends. A code other than 0 says that the guest failed.
  kPowerOff = 0x30,
  // W: guest-physical address of the event word, 8-aligned, in RAM; 0: none.
  kEventWord = 0x40,
};

// --- Events ---
//
// Delivered at epoch ends only: the machine ORs bits into the event word, then injects kEventVector if
// RFLAGS.IF is set and an event word is registered. One injection for all bits of an epoch end. No
// acknowledgement: the guest clears the bits it handled, before it looks at what they announce.
inline constexpr std::uint8_t kEventVector = 0x20;
inline constexpr std::uint64_t kTimerEvent = std::uint64_t{1} << 0;
// The virtio device in this slot has used buffers.
constexpr std::uint64_t virtio_event(std::uint32_t slot) { return std::uint64_t{2} << slot; }

// --- Virtio ---
//
// virtio-mmio version 2 windows as of any other machine: disks, NICs, console, entropy source. A doorbell
// only notes that there is something to serve: requests are taken off the queues, and completions and frames
// put into guest memory, at epoch ends. InterruptStatus need not be read or acknowledged.
inline constexpr std::uint64_t kVirtioBase = 0xd000'0000;
inline constexpr std::uint64_t kVirtioStride = 0x1000;
inline constexpr std::uint32_t kMaxVirtioSlots = 14;
constexpr std::uint64_t virtio_window(std::uint32_t slot) { return kVirtioBase + slot * kVirtioStride; }

// Status of a block request (virtio 1.2, 5.2.6 defines 0 to 2): a promoted replica cannot know whether it
// took effect. The driver repeats it; every request can be repeated. A frame sent is always uncertain.
inline constexpr std::uint8_t kBlockUncertain = 0x50;

// --- Exit codes the runtime uses on its own ---
inline constexpr std::uint32_t kExitPanic = 0x100;
inline constexpr std::uint32_t kExitException = 0x200;  // plus the vector; 0xff: one while reporting another

}  // namespace pollux::guest_abi
