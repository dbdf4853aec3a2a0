// bzImage under the 64-bit boot protocol (Documentation/arch/x86/boot.rst).
#include <algorithm>
#include <cstddef>
#include <cstring>

#include "base/error.h"
#include "vmm/boot/kernel_image.h"
#include "vmm/machine/layout.h"

namespace pollux::vmm::boot {
namespace {

constexpr std::size_t kHeaderOffset = 0x1f1;
constexpr std::size_t kSetupSectorSize = 512;
constexpr std::uint16_t kBootFlag = 0xaa55;
constexpr std::uint32_t kHeaderMagic = 0x5372'6448;  // "HdrS"
constexpr std::uint16_t kVersionWithXloadflags = 0x020c;
constexpr std::uint64_t kEntryOffset = 0x200;  // of the 64-bit entry point in the protected-mode code
constexpr std::uint8_t kUnknownLoader = 0xff;
constexpr unsigned kDefaultSetupSectors = 4;  // what 0 means
constexpr std::uint64_t kMaxAlignment = std::uint64_t{1} << 30;

[[noreturn]] void refuse(const std::string& path, const std::string& why) {
  throw UsageError("kernel " + path + ": " + why);
}

// The header says itself how long it is: the byte at 0x201 is the operand of a jump over it.
setup_header read_header(const std::string& path, ByteView file) {
  setup_header header{};
  if (file.size() < kHeaderOffset + sizeof header) refuse(path, "too short for a Linux kernel");
  std::memcpy(&header, file.data() + kHeaderOffset, sizeof header);
  if (header.boot_flag != kBootFlag || header.header != kHeaderMagic) {
    refuse(path, "neither a bzImage nor an ELF64 executable");
  }
  const std::size_t length = 0x202 + std::to_integer<std::size_t>(file[0x201]) - kHeaderOffset;
  if (length < sizeof header) {
    std::memset(reinterpret_cast<std::byte*>(&header) + length, 0, sizeof header - length);
  }
  if (header.version < kVersionWithXloadflags) refuse(path, "its boot protocol is older than 2.12");
  if (!(header.xloadflags & XLF_KERNEL_64)) refuse(path, "has no 64-bit entry point");
  if (!(header.loadflags & LOADED_HIGH)) refuse(path, "is a zImage, not a bzImage");
  return header;
}

// The preferred address, or for a relocatable kernel the lowest aligned one when that does not fit.
GuestAddress choose_address(const std::string& path, const setup_header& header, std::uint64_t needed,
                            std::uint64_t ram_end) {
  const auto fits = [&](std::uint64_t address) {
    return address >= layout::kOneMiB.value && address <= ram_end && needed <= ram_end - address;
  };
  if (fits(header.pref_address)) return {header.pref_address};
  const std::uint64_t alignment = std::max<std::uint64_t>(header.kernel_alignment, kPageSize);
  const bool valid = (alignment & (alignment - 1)) == 0 && alignment <= kMaxAlignment;
  const std::uint64_t lowest = (layout::kOneMiB.value + alignment - 1) & ~(alignment - 1);
  if (header.relocatable_kernel && valid && fits(lowest)) return {lowest};
  refuse(path, "needs more memory than the guest has");
}

}  // namespace

LoadedKernel load_bzimage(const std::string& path, ByteView file, GuestMemory& memory) {
  LoadedKernel kernel;
  kernel.header = read_header(path, file);
  const unsigned sectors = kernel.header.setup_sects ? kernel.header.setup_sects : kDefaultSetupSectors;
  const std::size_t setup_bytes = (sectors + 1) * kSetupSectorSize;
  if (file.size() <= setup_bytes + kEntryOffset) refuse(path, "truncated");
  const ByteView code = file.subspan(setup_bytes);
  constexpr std::uint64_t kParagraph = 16;  // syssize counts these
  if (code.size() < kernel.header.syssize * kParagraph -
                        std::min<std::uint64_t>(kernel.header.syssize, 1) * (kParagraph - 1)) {
    refuse(path, "truncated");
  }
  const std::uint64_t ram_end = memory.regions().front().bytes.size();
  const std::uint64_t needed = std::max<std::uint64_t>(code.size(), kernel.header.init_size);
  const GuestAddress address = choose_address(path, kernel.header, needed, ram_end);
  POLLUX_ASSERT(memory.write(address, code));
  kernel.header.type_of_loader = kUnknownLoader;
  kernel.header.code32_start = static_cast<std::uint32_t>(address.value);
  kernel.entry = address + kEntryOffset;
  kernel.end = address + needed;
  kernel.initrd_limit = std::uint64_t{kernel.header.initrd_addr_max} + 1;
  kernel.command_line_limit = kernel.header.cmdline_size;
  return kernel;
}

}  // namespace pollux::vmm::boot
