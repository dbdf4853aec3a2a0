// Where things are in the guest's address spaces, and which interrupt is whose. The ACPI tables say the same.
#pragma once

#include <cstdint>

#include "vmm/kvm/vm.h"
#include "vmm/memory/address.h"

namespace pollux::vmm::layout {

// Ports.
inline constexpr std::uint16_t kSerialPort = 0x3f8;
inline constexpr std::uint16_t kSerialPorts = 8;
inline constexpr std::uint16_t kKeyboardPort = 0x60;
inline constexpr std::uint16_t kKeyboardPorts = 5;
inline constexpr std::uint16_t kRtcPort = 0x70;
inline constexpr std::uint16_t kRtcPorts = 2;
inline constexpr std::uint16_t kPowerPort = 0x600;
inline constexpr std::uint16_t kPowerPorts = 8;

// Pins of the I/O APIC. Its 24 less those of the PC (0-9 here) are exactly enough for every virtio device.
inline constexpr kvm::Gsi kSerialGsi{4};
inline constexpr kvm::Gsi kSciGsi{9};
inline constexpr std::uint32_t kFirstVirtioGsi = 10;
inline constexpr std::uint32_t kGsiCount = 24;

// Memory-mapped I/O, in the 32-bit hole. APIC addresses are the architecture's.
inline constexpr GuestAddress kVirtioBase{0xd000'0000};
inline constexpr std::uint64_t kVirtioStride = 0x1000;
inline constexpr GuestAddress kIoApic{0xfec0'0000};
inline constexpr GuestAddress kLocalApic{0xfee0'0000};

// Low memory, as a boot loader leaves it.
inline constexpr GuestAddress kGdt{0x500};
inline constexpr GuestAddress kZeroPage{0x7000};
inline constexpr GuestAddress kBootStack{0x8ff0};
inline constexpr GuestAddress kPageTables{0x9000};  // six pages
inline constexpr GuestAddress kCommandLine{0x2'0000};
inline constexpr std::uint64_t kCommandLineRoom = 0x1'0000;
inline constexpr GuestAddress kBiosData{0x9'fc00};    // end of usable memory below 1 MiB
inline constexpr GuestAddress kAcpiTables{0xe'0000};  // where the RSDP is looked for (ACPI 6.4, 5.2.5.1)
inline constexpr GuestAddress kOneMiB{0x10'0000};

constexpr GuestAddress virtio_window(std::uint32_t slot) {
  return {kVirtioBase.value + slot * kVirtioStride};
}
constexpr kvm::Gsi virtio_gsi(std::uint32_t slot) { return {kFirstVirtioGsi + slot}; }

// Virtio slots: disks, NICs, then the console and the entropy source, which every machine has.
constexpr std::uint32_t virtio_slots(std::size_t disks, std::size_t nics) {
  return static_cast<std::uint32_t>(disks + nics) + 2;
}
static_assert(virtio_slots(kMaxDisks, kMaxNics) == kGsiCount - kFirstVirtioGsi);

}  // namespace pollux::vmm::layout
