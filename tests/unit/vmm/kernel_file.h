// Kernels made up for tests.
#pragma once

#include <elf.h>

#include <cstring>
#include <fstream>
#include <string>
#include <vector>

#include "base/bytes.h"

namespace pollux::vmm::boot {

inline constexpr std::size_t kSetupBytes = 5 * 512;
inline constexpr std::size_t kCodeBytes = 8192;

template <class T>
void put(Bytes& file, std::size_t offset, T value) {
  std::memcpy(file.data() + offset, &value, sizeof value);
}

// The smallest bzImage the loader takes; offsets are those of Documentation/arch/x86/boot.rst.
inline Bytes small_bzimage() {
  Bytes file(kSetupBytes + kCodeBytes, std::byte{0x90});
  std::memset(file.data() + 0x1f1, 0, 0x80);
  put<std::uint8_t>(file, 0x1f1, 4);                 // setup_sects
  put<std::uint32_t>(file, 0x1f4, kCodeBytes / 16);  // syssize
  put<std::uint16_t>(file, 0x1fe, 0xaa55);           // boot_flag
  put<std::uint16_t>(file, 0x200, 0x6aeb);           // jump over the header
  put<std::uint32_t>(file, 0x202, 0x53726448);       // "HdrS"
  put<std::uint16_t>(file, 0x206, 0x020f);           // version
  put<std::uint8_t>(file, 0x211, 1);                 // loadflags: LOADED_HIGH
  put<std::uint32_t>(file, 0x22c, 0x7fffffff);       // initrd_addr_max
  put<std::uint32_t>(file, 0x230, 0x200000);         // kernel_alignment
  put<std::uint8_t>(file, 0x234, 1);                 // relocatable_kernel
  put<std::uint16_t>(file, 0x236, 1);                // xloadflags: XLF_KERNEL_64
  put<std::uint32_t>(file, 0x238, 100);              // cmdline_size
  put<std::uint64_t>(file, 0x258, 0x1000000);        // pref_address
  put<std::uint32_t>(file, 0x260, 0x100000);         // init_size
  return file;
}

struct ElfKernel {
  Elf64_Ehdr header{};
  std::vector<Elf64_Phdr> segments;
  std::size_t payload = 64;

  explicit ElfKernel(std::vector<std::uint64_t> addresses = {0x200000}) {
    std::memcpy(header.e_ident, ELFMAG, SELFMAG);
    header.e_ident[EI_CLASS] = ELFCLASS64;
    header.e_ident[EI_DATA] = ELFDATA2LSB;
    header.e_type = ET_EXEC;
    header.e_machine = EM_X86_64;
    header.e_phoff = sizeof header;
    header.e_phentsize = sizeof(Elf64_Phdr);
    header.e_phnum = static_cast<Elf64_Half>(addresses.size());
    header.e_entry = addresses.front();
    for (const std::uint64_t address : addresses) {
      Elf64_Phdr segment{};
      segment.p_type = PT_LOAD;
      segment.p_offset = sizeof header + addresses.size() * sizeof segment;
      segment.p_paddr = address;
      segment.p_filesz = payload;
      segment.p_memsz = 4096;
      segments.push_back(segment);
    }
  }

  [[nodiscard]] Bytes file() const {
    Bytes bytes(sizeof header + segments.size() * sizeof(Elf64_Phdr) + payload, std::byte{0xf4});
    std::memcpy(bytes.data(), &header, sizeof header);
    for (std::size_t i = 0; i < segments.size(); ++i) {
      std::memcpy(bytes.data() + sizeof header + i * sizeof(Elf64_Phdr), &segments[i], sizeof(Elf64_Phdr));
    }
    return bytes;
  }
};

}  // namespace pollux::vmm::boot
