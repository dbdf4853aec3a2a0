#include "vmm/boot/long_mode.h"

#include <array>

#include "base/error.h"
#include "vmm/machine/layout.h"

namespace pollux::vmm::boot {
namespace {

constexpr std::uint64_t kEntriesPerTable = 512;
constexpr std::uint64_t kDirectories = 4;  // 1 GiB each
constexpr std::uint64_t kPresentWritable = 0x03;
constexpr std::uint64_t kLargePage = 0x80;
constexpr std::uint64_t kLargePageShift = 21;

// Selectors are the protocol's: 0x10 code, 0x18 data; the task segment is what VT-x demands of any entry.
constexpr std::uint16_t kCodeSelector = 0x10, kDataSelector = 0x18, kTaskSelector = 0x20;
constexpr std::array<std::uint64_t, 6> kGdt{0,
                                            0,
                                            0x00af'9b00'0000'ffff,  // 64-bit code, executable and readable
                                            0x00cf'9300'0000'ffff,  // data, writable
                                            0x0000'8b00'0000'ffff,  // busy 64-bit TSS, two entries
                                            0};

constexpr std::uint64_t kCr0 = 0x8000'0033;  // PG, NE, ET, MP, PE
constexpr std::uint64_t kCr4 = 0x20;         // PAE
constexpr std::uint64_t kEfer = 0x500;       // LMA, LME

kvm_segment segment(std::uint16_t selector, std::uint8_t type) {
  kvm_segment s{};
  s.selector = selector;
  s.type = type;
  s.limit = 0xffff'ffff;
  s.present = 1;
  s.s = 1;
  s.g = 1;
  return s;
}

void put(GuestMemory& memory, GuestAddress address, std::uint64_t value) {
  POLLUX_ASSERT(memory.write(address, bytes_of(value)));
}

}  // namespace

void write_long_mode_tables(GuestMemory& memory) {
  const GuestAddress top = layout::kPageTables, pointers = top + kPageSize,
                     directories = pointers + kPageSize;
  put(memory, top, pointers.value | kPresentWritable);
  for (std::uint64_t i = 0; i < kDirectories; ++i) {
    put(memory, pointers + i * 8, (directories.value + i * kPageSize) | kPresentWritable);
  }
  for (std::uint64_t i = 0; i < kDirectories * kEntriesPerTable; ++i) {
    put(memory, directories + i * 8, i << kLargePageShift | kLargePage | kPresentWritable);
  }
  POLLUX_ASSERT(memory.write(layout::kGdt, bytes_of(kGdt)));
}

kvm_sregs2 long_mode_system_registers(kvm_sregs2 registers) {
  constexpr std::uint8_t kExecuteRead = 0xb, kReadWrite = 0x3, kBusyTask = 0xb;
  registers.cs = segment(kCodeSelector, kExecuteRead);
  registers.cs.l = 1;
  const kvm_segment data = segment(kDataSelector, kReadWrite);
  registers.ds = registers.es = registers.fs = registers.gs = registers.ss = data;
  registers.ds.db = registers.es.db = registers.fs.db = registers.gs.db = registers.ss.db = 1;
  registers.tr = segment(kTaskSelector, kBusyTask);
  registers.tr.s = 0;
  registers.tr.limit = 0xffff;
  registers.tr.g = 0;
  registers.gdt.base = layout::kGdt.value;
  registers.gdt.limit = sizeof kGdt - 1;
  registers.idt.base = 0;
  registers.idt.limit = 0;
  registers.cr0 = kCr0;
  registers.cr3 = layout::kPageTables.value;
  registers.cr4 = kCr4;
  registers.efer = kEfer;
  return registers;
}

kvm_regs entry_registers(GuestAddress entry) {
  constexpr std::uint64_t kReservedFlag = 0x2;
  kvm_regs registers{};
  registers.rflags = kReservedFlag;
  registers.rip = entry.value;
  registers.rsp = registers.rbp = layout::kBootStack.value;
  registers.rsi = layout::kZeroPage.value;
  return registers;
}

}  // namespace pollux::vmm::boot
