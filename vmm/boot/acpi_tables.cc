#include "vmm/boot/acpi_tables.h"

#include <cstring>
#include <numeric>
#include <string>

#include "base/error.h"
#include "vmm/boot/aml.h"
#include "vmm/devices/platform/power.h"
#include "vmm/machine/layout.h"

namespace pollux::vmm::boot {
namespace {

constexpr std::size_t kAlignment = 64;  // what the FACS demands
constexpr std::size_t kLengthOffset = 4, kChecksumOffset = 9;

class Table {
 public:
  Table& text(std::string_view value) {
    for (const char c : value) bytes_.push_back(std::byte(c));
    return *this;
  }
  Table& u8(std::uint64_t value) { return number(value, 1); }
  Table& u16(std::uint64_t value) { return number(value, 2); }
  Table& u32(std::uint64_t value) { return number(value, 4); }
  Table& u64(std::uint64_t value) { return number(value, 8); }
  Table& zeros(std::size_t count) {
    bytes_.resize(bytes_.size() + count);
    return *this;
  }
  Table& bytes(const Bytes& more) {
    bytes_.insert(bytes_.end(), more.begin(), more.end());
    return *this;
  }
  // Generic Address Structure (5.2.3.2) of a port.
  Table& port(std::uint16_t address, std::uint8_t bits) {
    constexpr std::uint8_t kSystemIo = 1;
    return u8(kSystemIo).u8(bits).u8(0).u8(0).u64(address);
  }
  Table& no_address() { return zeros(12); }

  // Makes bytes [0, count) add up to zero through the byte at `offset`.
  Table& checksum(std::size_t offset, std::size_t count) {
    bytes_[offset] = std::byte{0};
    unsigned sum = 0;
    for (std::size_t i = 0; i < count; ++i) sum += std::to_integer<unsigned>(bytes_[i]);
    bytes_[offset] = std::byte((0x100 - (sum & 0xff)) & 0xff);
    return *this;
  }
  // Fills in a system description table's length and checksum.
  Bytes finish() {
    const auto length = static_cast<std::uint32_t>(bytes_.size());
    std::memcpy(bytes_.data() + kLengthOffset, &length, sizeof length);
    checksum(kChecksumOffset, bytes_.size());
    return bytes_;
  }
  Bytes raw() { return bytes_; }

 private:
  Table& number(std::uint64_t value, unsigned width) {
    for (unsigned i = 0; i < width; ++i) bytes_.push_back(std::byte(value >> (8 * i) & 0xff));
    return *this;
  }
  Bytes bytes_;
};

// The common header (5.2.6); length and checksum come with finish().
Table description_table(std::string_view signature, std::uint8_t revision) {
  Table table;
  table.text(signature).u32(0).u8(revision).u8(0).text("POLLUX").text("POLLUXVM").u32(1).text("PLLX").u32(1);
  return table;
}

Bytes rsdp(GuestAddress xsdt) {  // 5.2.5.3
  constexpr std::size_t kFirstPart = 20, kChecksum = 8, kWhole = 36, kExtendedChecksum = 32;
  Table table;
  table.text("RSD PTR ").u8(0).text("POLLUX").u8(2).u32(0).u32(kWhole).u64(xsdt.value).u8(0).zeros(3);
  return table.checksum(kChecksum, kFirstPart).checksum(kExtendedChecksum, kWhole).raw();
}

Bytes xsdt(GuestAddress fadt, GuestAddress madt) {
  return description_table("XSDT", 1).u64(fadt.value).u64(madt.value).finish();
}

Bytes facs() {  // 5.2.10; no checksum
  return Table().text("FACS").u32(64).u32(0).u32(0).u32(0).u32(0).u64(0).u8(2).zeros(31).raw();
}

// 5.2.9. Fixed buttons are said to be absent, there is no PM timer and no general-purpose event.
Bytes fadt(GuestAddress facs, GuestAddress dsdt) {
  constexpr std::uint16_t kEvent = layout::kPowerPort + PowerManagement::kEvent;
  constexpr std::uint16_t kControl = layout::kPowerPort + PowerManagement::kControl;
  constexpr std::uint16_t kReset = layout::kPowerPort + PowerManagement::kReset;
  constexpr std::uint16_t kLegacyDevicesNoVga = 1 << 0 | 1 << 2;
  constexpr std::uint32_t kFlags = 1 << 0      // WBINVD works
                                   | 1 << 2    // C1 on all processors
                                   | 1 << 4    // no fixed power button
                                   | 1 << 5    // no fixed sleep button
                                   | 1 << 10;  // reset register
  constexpr std::uint16_t kNoC2 = 101, kNoC3 = 1001;
  Table table = description_table("FACP", 6);
  table.u32(facs.value).u32(dsdt.value).u8(0).u8(0);
  table.u16(layout::kSciGsi.value).u32(0).u8(0).u8(0).u8(0).u8(0);  // no SMI command: always in ACPI mode
  table.u32(kEvent).u32(0).u32(kControl).u32(0).u32(0).u32(0).u32(0).u32(0);
  table.u8(4).u8(2).u8(0).u8(0).u8(0).u8(0).u8(0).u8(0);
  table.u16(kNoC2).u16(kNoC3).u16(0).u16(0).u8(0).u8(0);
  table.u8(0).u8(0).u8(0x32).u16(kLegacyDevicesNoVga).u8(0).u32(kFlags);  // 0x32: the RTC's century
  table.port(kReset, 8).u8(PowerManagement::kResetValue).u16(0).u8(4);
  table.u64(0).u64(dsdt.value);  // only one of the two FACS addresses may be given (table 5.9)
  table.port(kEvent, 32).no_address().port(kControl, 16).no_address();
  table.no_address().no_address().no_address().no_address();
  table.no_address().no_address().u64(0);
  return table.finish();
}

// 5.2.12: the APICs, and how the PC's own interrupts reach the I/O APIC.
Bytes madt(const MachineConfig& config) {
  constexpr std::uint32_t kPcatCompatible = 1;
  constexpr std::uint16_t kConforming = 0, kActiveHighLevel = 0x000d;
  Table table = description_table("APIC", 5);
  table.u32(layout::kLocalApic.value).u32(kPcatCompatible);
  for (std::uint32_t id = 0; id < config.vcpus; ++id) table.u8(0).u8(8).u8(id).u8(id).u32(1);
  table.u8(1).u8(12).u8(0).u8(0).u32(layout::kIoApic.value).u32(0);
  table.u8(2).u8(10).u8(0).u8(0).u32(2).u16(kConforming);  // the timer is on pin 2
  table.u8(2).u8(10).u8(0).u8(layout::kSciGsi.value).u32(layout::kSciGsi.value).u16(kActiveHighLevel);
  table.u8(4).u8(6).u8(0xff).u16(kConforming).u8(1);  // NMI on LINT1 of every processor
  return table.finish();
}

Bytes virtio_device(std::uint32_t slot) {
  const std::string digits = "0123456789ABCDEF";
  const std::string name = std::string("VIO") + digits[slot];
  const auto window = static_cast<std::uint32_t>(layout::virtio_window(slot).value);
  return aml::device(
      name,
      {aml::name("_HID", aml::string("LNRO0005")),  // what Linux's virtio_mmio driver looks for
       aml::name("_UID", aml::integer(slot)), aml::name("_CCA", aml::integer(1)),
       aml::name("_CRS", aml::resource_template({aml::memory32_fixed(window, layout::kVirtioStride),
                                                 aml::extended_interrupt(layout::virtio_gsi(slot).value)}))});
}

Bytes serial_port() {
  return aml::device(
      "COM1",
      {aml::name("_HID", aml::eisa_id("PNP0501")), aml::name("_UID", aml::integer(0)),
       aml::name("_CRS", aml::resource_template({aml::io_ports(layout::kSerialPort, layout::kSerialPorts),
                                                 aml::isa_interrupt(layout::kSerialGsi.value)}))});
}

Bytes dsdt(const MachineConfig& config) {
  std::vector<Bytes> devices{serial_port()};
  for (std::uint32_t slot = 0; slot < layout::virtio_slots(config.disks.size(), config.nics.size()); ++slot) {
    devices.push_back(virtio_device(slot));
  }
  const Bytes soft_off = aml::integer(PowerManagement::kSoftOff);
  return description_table("DSDT", 2)
      .bytes(aml::name("\\_S5_", aml::package({soft_off, soft_off, aml::integer(0), aml::integer(0)})))
      .bytes(aml::scope("\\_SB_", devices))
      .finish();
}

}  // namespace

Bytes acpi_tables(const MachineConfig& config, GuestAddress base) {
  POLLUX_ASSERT(base.value % kAlignment == 0);
  Bytes all(kAlignment);  // the RSDP, which needs an address that is not known yet
  const auto add = [&](const Bytes& table) {
    const GuestAddress at = base + all.size();
    all.insert(all.end(), table.begin(), table.end());
    all.resize((all.size() + kAlignment - 1) / kAlignment * kAlignment);
    return at;
  };
  const GuestAddress facs_at = add(facs());
  const GuestAddress dsdt_at = add(dsdt(config));
  const GuestAddress fadt_at = add(fadt(facs_at, dsdt_at));
  const GuestAddress madt_at = add(madt(config));
  const Bytes root = rsdp(add(xsdt(fadt_at, madt_at)));
  std::memcpy(all.data(), root.data(), root.size());
  return all;
}

}  // namespace pollux::vmm::boot
