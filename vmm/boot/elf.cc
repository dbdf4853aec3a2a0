// ELF64 executables (System V ABI, "ELF Header" and "Program Header"), loaded at their physical addresses.
#include <elf.h>

#include <algorithm>
#include <cstring>
#include <vector>

#include "base/error.h"
#include "vmm/boot/kernel_image.h"
#include "vmm/machine/layout.h"

namespace pollux::vmm::boot {
namespace {

constexpr std::size_t kMaxProgramHeaders = 64;
// What Linux kernels of this format take, for want of a header that says it: COMMAND_LINE_SIZE less the zero,
// and initrd_addr_max of the bzImage made from the same kernel.
constexpr std::size_t kCommandLineLimit = 2047;
constexpr std::uint64_t kInitrdLimit = 0x8000'0000;

[[noreturn]] void refuse(const std::string& path, const std::string& why) {
  throw UsageError("kernel " + path + ": " + why);
}

Elf64_Ehdr read_header(const std::string& path, ByteView file) {
  Elf64_Ehdr header{};
  if (file.size() < sizeof header) refuse(path, "truncated ELF header");
  std::memcpy(&header, file.data(), sizeof header);
  if (header.e_ident[EI_CLASS] != ELFCLASS64 || header.e_ident[EI_DATA] != ELFDATA2LSB ||
      header.e_machine != EM_X86_64) {
    refuse(path, "not an ELF64 file for x86-64");
  }
  if (header.e_type != ET_EXEC) refuse(path, "not an ELF executable with fixed addresses");
  if (header.e_phentsize != sizeof(Elf64_Phdr) || header.e_phnum == 0 ||
      header.e_phnum > kMaxProgramHeaders) {
    refuse(path, "bad ELF program header table");
  }
  const std::size_t table = header.e_phnum * sizeof(Elf64_Phdr);
  if (header.e_phoff > file.size() || table > file.size() - header.e_phoff) {
    refuse(path, "ELF program headers outside the file");
  }
  return header;
}

std::vector<Elf64_Phdr> read_segments(const std::string& path, ByteView file, const Elf64_Ehdr& header) {
  std::vector<Elf64_Phdr> segments;
  for (std::size_t i = 0; i < header.e_phnum; ++i) {
    Elf64_Phdr segment{};
    std::memcpy(&segment, file.data() + header.e_phoff + i * sizeof segment, sizeof segment);
    if (segment.p_type != PT_LOAD || segment.p_memsz == 0) continue;
    if (segment.p_filesz > segment.p_memsz) refuse(path, "ELF segment larger in the file than in memory");
    if (segment.p_offset > file.size() || segment.p_filesz > file.size() - segment.p_offset) {
      refuse(path, "ELF segment outside the file");
    }
    segments.push_back(segment);
  }
  if (segments.empty()) refuse(path, "ELF file with nothing to load");
  std::sort(segments.begin(), segments.end(),
            [](const Elf64_Phdr& a, const Elf64_Phdr& b) { return a.p_paddr < b.p_paddr; });
  return segments;
}

// Above the first megabyte, where the boot data are, and below the 32-bit hole, which the entry's page tables
// map.
void check_placement(const std::string& path, const std::vector<Elf64_Phdr>& segments,
                     std::uint64_t ram_end) {
  std::uint64_t free_from = layout::kOneMiB.value;
  for (const Elf64_Phdr& segment : segments) {
    if (segment.p_paddr < layout::kOneMiB.value) refuse(path, "ELF segment below 1 MiB");
    if (segment.p_paddr < free_from) refuse(path, "ELF segments overlap");
    if (segment.p_paddr > ram_end || segment.p_memsz > ram_end - segment.p_paddr) {
      refuse(path, "ELF segment outside the guest's memory");
    }
    free_from = segment.p_paddr + segment.p_memsz;
  }
}

}  // namespace

bool is_elf(ByteView file) {
  return file.size() >= SELFMAG && std::memcmp(file.data(), ELFMAG, SELFMAG) == 0;
}

LoadedKernel load_elf(const std::string& path, ByteView file, GuestMemory& memory) {
  const Elf64_Ehdr header = read_header(path, file);
  const std::vector<Elf64_Phdr> segments = read_segments(path, file, header);
  check_placement(path, segments, memory.regions().front().bytes.size());
  const bool entered = std::any_of(segments.begin(), segments.end(), [&](const Elf64_Phdr& s) {
    return header.e_entry >= s.p_paddr && header.e_entry - s.p_paddr < s.p_memsz;
  });
  if (!entered) refuse(path, "ELF entry point outside its segments");
  for (const Elf64_Phdr& segment : segments) {  // the rest of p_memsz is fresh memory: zero
    POLLUX_ASSERT(memory.write({segment.p_paddr}, file.subspan(segment.p_offset, segment.p_filesz)));
  }
  LoadedKernel kernel;
  kernel.entry = {header.e_entry};
  kernel.end = {segments.back().p_paddr + segments.back().p_memsz};
  kernel.initrd_limit = kInitrdLimit;
  kernel.command_line_limit = kCommandLineLimit;
  kernel.header.boot_flag = 0xaa55;
  kernel.header.header = 0x5372'6448;  // "HdrS"
  kernel.header.version = 0x020c;
  kernel.header.type_of_loader = 0xff;
  kernel.header.loadflags = LOADED_HIGH;
  kernel.header.kernel_alignment = 0x100'0000;
  return kernel;
}

}  // namespace pollux::vmm::boot
