#include "vmm/boot/kernel_image.h"

#include <gtest/gtest.h>

#include <limits>
#include <random>

#include "base/error.h"
#include "tests/unit/vmm/kernel_file.h"

namespace pollux::vmm::boot {
namespace {

constexpr std::uint64_t kMemory = std::uint64_t{32} << 20;
constexpr std::uint64_t kHuge = std::numeric_limits<std::uint64_t>::max();

LoadedKernel load(const Bytes& file, std::uint64_t memory_bytes = kMemory) {
  GuestMemory memory(memory_bytes);
  return load_kernel("k", file, memory);
}

TEST(BzImage, IsLoadedAtItsPreferredAddress) {
  GuestMemory memory(kMemory);
  const LoadedKernel kernel = load_kernel("k", small_bzimage(), memory);
  EXPECT_EQ(kernel.entry.value, 0x1000200u);
  EXPECT_EQ(kernel.end.value, 0x1100000u);
  EXPECT_EQ(kernel.command_line_limit, 100u);
  EXPECT_EQ(kernel.initrd_limit, 0x80000000u);
  EXPECT_EQ((*memory.view(GuestAddress{0x1000000}, 1))[0], std::byte{0x90});
}

TEST(BzImage, IsLoadedLowerWhereMemoryIsScarce) {
  EXPECT_EQ(load(small_bzimage(), std::uint64_t{8} << 20).entry.value, 0x200200u);
}

TEST(BzImage, RefusesWhatItCannotBoot) {
  const auto with = [](std::size_t offset, auto value) {
    Bytes file = small_bzimage();
    put(file, offset, value);
    return file;
  };
  EXPECT_THROW(load(with(0x202, std::uint32_t{0})), UsageError);           // magic
  EXPECT_THROW(load(with(0x1fe, std::uint16_t{0})), UsageError);           // boot flag
  EXPECT_THROW(load(with(0x206, std::uint16_t{0x020b})), UsageError);      // version
  EXPECT_THROW(load(with(0x236, std::uint16_t{0})), UsageError);           // no 64-bit entry
  EXPECT_THROW(load(with(0x211, std::uint8_t{0})), UsageError);            // zImage
  EXPECT_THROW(load(with(0x1f1, std::uint8_t{64})), UsageError);           // setup longer than the file
  EXPECT_THROW(load(with(0x1f4, std::uint32_t{0xffffffff})), UsageError);  // code longer than the file
  EXPECT_THROW(load(with(0x260, std::uint32_t{0xffffffff})), UsageError);  // init_size
  Bytes fixed = with(0x258, kHuge);
  put(fixed, 0x234, std::uint8_t{0});
  EXPECT_THROW(load(fixed), UsageError);  // not relocatable, and its address is nowhere
  Bytes odd = with(0x258, kHuge);
  put(odd, 0x230, std::uint32_t{12345});
  EXPECT_THROW(load(odd), UsageError);  // alignment
}

TEST(BzImage, EveryTruncationIsRefused) {
  const Bytes whole = small_bzimage();
  for (std::size_t size = 0; size < whole.size(); size += size < 1024 ? 1 : 97) {
    EXPECT_THROW(load(Bytes(whole.begin(), whole.begin() + static_cast<std::ptrdiff_t>(size))), UsageError)
        << size;
  }
}

TEST(Elf, IsLoadedAtItsPhysicalAddresses) {
  GuestMemory memory(kMemory);
  const LoadedKernel kernel = load_kernel("k", ElfKernel({0x200000, 0x400000}).file(), memory);
  EXPECT_EQ(kernel.entry.value, 0x200000u);
  EXPECT_EQ(kernel.end.value, 0x401000u);
  EXPECT_EQ((*memory.view(GuestAddress{0x400000}, 1))[0], std::byte{0xf4});
  EXPECT_EQ((*memory.view(GuestAddress{0x400000 + 64}, 1))[0], std::byte{0});
}

TEST(Elf, RefusesHostileHeaders) {
  const auto refused = [](auto change) {
    ElfKernel kernel({0x200000, 0x400000});
    change(kernel);
    EXPECT_THROW(load(kernel.file()), UsageError);
  };
  refused([](ElfKernel& k) { k.header.e_ident[EI_CLASS] = ELFCLASS32; });
  refused([](ElfKernel& k) { k.header.e_machine = EM_AARCH64; });
  refused([](ElfKernel& k) { k.header.e_type = ET_DYN; });
  refused([](ElfKernel& k) { k.header.e_phentsize = 1; });
  refused([](ElfKernel& k) { k.header.e_phnum = 0; });
  refused([](ElfKernel& k) { k.header.e_phnum = 0xffff; });
  refused([](ElfKernel& k) { k.header.e_phoff = kHuge; });
  refused([](ElfKernel& k) { k.header.e_phoff = kHuge - 8; });
  refused([](ElfKernel& k) { k.header.e_entry = 0x300000; });
  refused([](ElfKernel& k) { k.segments[1].p_offset = kHuge; });
  refused([](ElfKernel& k) { k.segments[1].p_filesz = kHuge; });
  refused([](ElfKernel& k) { k.segments[1].p_filesz = 5000; });  // more than p_memsz
  refused([](ElfKernel& k) { k.segments[1].p_memsz = kHuge; });
  refused([](ElfKernel& k) { k.segments[1].p_memsz = kMemory; });
  refused([](ElfKernel& k) { k.segments[1].p_paddr = kHuge - 10; });
  refused([](ElfKernel& k) { k.segments[1].p_paddr = kMemory; });
  refused([](ElfKernel& k) { k.segments[1].p_paddr = 0x200800; });  // overlaps the first
  refused([](ElfKernel& k) { k.segments[1].p_paddr = 0x1000; });    // over the boot data
  refused([](ElfKernel& k) { k.segments[0].p_type = k.segments[1].p_type = PT_NOTE; });
}

TEST(KernelImage, DamagedFilesNeverCrashTheLoader) {
  std::mt19937 random(1);
  for (const Bytes& good : {small_bzimage(), ElfKernel({0x200000, 0x400000}).file()}) {
    for (int round = 0; round < 2000; ++round) {
      Bytes file = good;
      for (int i = 0; i < 4; ++i)
        file[random() % std::min<std::size_t>(file.size(), 0x270)] = std::byte(random() & 0xff);
      try {
        (void)load(file);
      } catch (const UsageError&) {  // refused: as good
      }
    }
  }
}

}  // namespace
}  // namespace pollux::vmm::boot
