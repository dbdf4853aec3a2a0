#include "vmm/boot/boot_loader.h"

#include <asm/bootparam.h>

#include <algorithm>
#include <cstring>
#include <memory>

#include "base/error.h"
#include "vmm/boot/acpi_tables.h"
#include "vmm/boot/boot_file.h"
#include "vmm/boot/e820.h"
#include "vmm/boot/kernel_image.h"
#include "vmm/boot/long_mode.h"
#include "vmm/machine/layout.h"

namespace pollux::vmm::boot {
namespace {

struct Placed {
  GuestAddress start;
  std::uint64_t bytes = 0;
};

// As high as allowed, for the kernel unpacks itself from below.
Placed load_initrd(const std::string& path, const LoadedKernel& kernel, GuestMemory& memory) {
  if (path.empty()) return {};
  const std::uint64_t limit =
      std::min<std::uint64_t>(kernel.initrd_limit, memory.regions().front().bytes.size());
  const std::uint64_t room = limit > kernel.end.value ? limit - kernel.end.value : 0;
  const Bytes file = read_boot_file("initrd", path, room);
  const GuestAddress start{(limit - file.size()) & ~(kPageSize - 1)};
  if (start < kernel.end) throw UsageError("initrd " + path + ": too large for the guest's memory");
  POLLUX_ASSERT(memory.write(start, file));
  return {start, file.size()};
}

void write_command_line(const std::string& line, const LoadedKernel& kernel, GuestMemory& memory) {
  const std::size_t limit = std::min<std::size_t>(kernel.command_line_limit, layout::kCommandLineRoom - 1);
  if (line.size() > limit) {
    throw UsageError("cmdline: " + std::to_string(line.size()) + " bytes, and this kernel takes " +
                     std::to_string(limit));
  }
  if (line.find('\0') != std::string::npos) throw UsageError("cmdline: contains a zero byte");
  const auto bytes = std::as_bytes(std::span(line.c_str(), line.size() + 1));
  POLLUX_ASSERT(memory.write(layout::kCommandLine, bytes));
}

void write_zero_page(const LoadedKernel& kernel, Placed initrd, GuestMemory& memory) {
  const auto params = std::make_unique<boot_params>();
  std::memset(static_cast<void*>(params.get()), 0, sizeof *params);
  params->hdr = kernel.header;
  params->hdr.ramdisk_image = static_cast<std::uint32_t>(initrd.start.value);
  params->hdr.ramdisk_size = static_cast<std::uint32_t>(initrd.bytes);
  params->hdr.cmd_line_ptr = static_cast<std::uint32_t>(layout::kCommandLine.value);
  params->acpi_rsdp_addr = layout::kAcpiTables.value;
  const std::vector<E820Range> map = memory_map(memory);
  params->e820_entries = static_cast<std::uint8_t>(map.size());
  for (std::size_t i = 0; i < map.size(); ++i) {
    boot_e820_entry entry{};
    entry.addr = map[i].start.value;
    entry.size = map[i].bytes;
    entry.type = static_cast<std::uint32_t>(map[i].type);
    std::memcpy(&params->e820_table[i], &entry, sizeof entry);
  }
  static_assert(sizeof(boot_params) == kPageSize);
  POLLUX_ASSERT(memory.write(layout::kZeroPage, bytes_of(*params)));
}

void write_acpi(const MachineConfig& config, GuestMemory& memory) {
  const Bytes tables = acpi_tables(config, layout::kAcpiTables);
  POLLUX_ASSERT(tables.size() <= layout::kOneMiB.value - layout::kAcpiTables.value);
  POLLUX_ASSERT(memory.write(layout::kAcpiTables, tables));
}

}  // namespace

GuestAddress load_guest(const MachineConfig& config, const BootSource& source, GuestMemory& memory) {
  if (memory.size() < kMinMemory) throw UsageError("memory: a guest needs at least 4 MiB");
  const LoadedKernel kernel =
      load_kernel(source.kernel_path, read_boot_file("kernel", source.kernel_path, memory.size()), memory);
  const Placed initrd = load_initrd(source.initrd_path, kernel, memory);
  write_command_line(source.command_line, kernel, memory);
  write_zero_page(kernel, initrd, memory);
  write_long_mode_tables(memory);
  write_acpi(config, memory);
  return kernel.entry;
}

}  // namespace pollux::vmm::boot
