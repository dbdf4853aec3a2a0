#include "vmm/boot/kernel_image.h"

#include "base/error.h"

namespace pollux::vmm::boot {

LoadedKernel load_kernel(const std::string& path, ByteView file, GuestMemory& memory) {
  return is_elf(file) ? load_elf(path, file, memory) : load_bzimage(path, file, memory);
}

}  // namespace pollux::vmm::boot
