// Kernels: a bzImage or an ELF64 executable, checked and put into guest memory.
#pragma once

#include <asm/bootparam.h>

#include <string>

#include "base/bytes.h"
#include "vmm/memory/guest_memory.h"

namespace pollux::vmm::boot {

struct LoadedKernel {
  GuestAddress entry;
  // One past what the kernel occupies, including what it clears or unpacks itself into before it looks at
  // e820.
  GuestAddress end;
  std::uint64_t initrd_limit = 0;      // the initrd's last byte is below this
  std::size_t command_line_limit = 0;  // without the terminating zero
  setup_header header{};               // for the zero page
};

// Each throws UsageError naming `path` for anything that is malformed, not supported, or too large for the
// memory. No field of the file is trusted.
LoadedKernel load_kernel(const std::string& path, ByteView file, GuestMemory& memory);

// The two formats, for load_kernel().
bool is_elf(ByteView file);
LoadedKernel load_elf(const std::string& path, ByteView file, GuestMemory& memory);
LoadedKernel load_bzimage(const std::string& path, ByteView file, GuestMemory& memory);

}  // namespace pollux::vmm::boot
