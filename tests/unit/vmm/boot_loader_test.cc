#include "vmm/boot/boot_loader.h"

#include <asm/bootparam.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "base/error.h"
#include "tests/unit/vmm/kernel_file.h"
#include "vmm/boot/e820.h"
#include "vmm/machine/layout.h"

namespace pollux::vmm::boot {
namespace {

class BootLoader : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string name = (std::filesystem::temp_directory_path() / "boot-loader-XXXXXX").string();
    ASSERT_NE(::mkdtemp(name.data()), nullptr);
    folder_ = name;
    kernel_ = write("kernel", small_bzimage());
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }

  std::string write(const std::string& name, const Bytes& bytes) {
    const std::string path = (folder_ / name).string();
    std::ofstream(path, std::ios::binary)
        .write(reinterpret_cast<const char*>(bytes.data()), static_cast<std::streamsize>(bytes.size()));
    return path;
  }
  GuestAddress load(const BootSource& source, std::uint64_t memory_bytes = std::uint64_t{32} << 20) {
    MachineConfig config;
    config.memory_bytes = memory_bytes;
    memory_ = std::make_unique<GuestMemory>(memory_bytes);
    return load_guest(config, source, *memory_);
  }
  boot_params zero_page() {
    boot_params params;
    EXPECT_TRUE(memory_->read(layout::kZeroPage, mutable_bytes_of(params)));
    return params;
  }

  std::filesystem::path folder_;
  std::string kernel_;
  std::unique_ptr<GuestMemory> memory_;
};

TEST_F(BootLoader, TellsTheKernelWhereEverythingIs) {
  const Bytes initrd(5000, std::byte{7});
  EXPECT_EQ(load({kernel_, write("initrd", initrd), "console=ttyS0"}).value, 0x1000200u);
  const boot_params params = zero_page();
  EXPECT_EQ(params.hdr.type_of_loader, 0xff);
  EXPECT_EQ(params.hdr.ramdisk_size, 5000u);
  EXPECT_EQ(params.hdr.ramdisk_image % kPageSize, 0u);
  EXPECT_EQ((*memory_->view(GuestAddress{params.hdr.ramdisk_image}, 5000))[4999], std::byte{7});
  EXPECT_STREQ(
      reinterpret_cast<const char*>(memory_->view(GuestAddress{params.hdr.cmd_line_ptr}, 32)->data()),
      "console=ttyS0");
  EXPECT_EQ(params.acpi_rsdp_addr, layout::kAcpiTables.value);
  EXPECT_EQ(params.e820_entries, 3);
}

TEST_F(BootLoader, RefusesWithTheNameOfWhatIsWrong) {
  const auto refusal = [&](const BootSource& source, std::uint64_t memory = std::uint64_t{32} << 20) {
    try {
      load(source, memory);
    } catch (const UsageError& error) {
      return std::string(error.what());
    }
    return std::string("accepted");
  };
  EXPECT_NE(refusal({"/missing", "", ""}).find("/missing"), std::string::npos);
  EXPECT_NE(refusal({folder_.string(), "", ""}).find("not a regular file"), std::string::npos);
  EXPECT_NE(refusal({write("empty", {}), "", ""}).find("empty"), std::string::npos);
  EXPECT_NE(refusal({kernel_, "/missing", ""}).find("initrd"), std::string::npos);
  EXPECT_NE(refusal({kernel_, "", std::string(101, 'x')}).find("cmdline"), std::string::npos);
  EXPECT_NE(refusal({kernel_, "", std::string("a\0b", 3)}).find("cmdline"), std::string::npos);
  EXPECT_NE(refusal({kernel_, "", ""}, std::uint64_t{1} << 20).find("memory"), std::string::npos);
  const std::string initrd = write("large", Bytes(std::size_t{20} << 20));
  EXPECT_NE(refusal({kernel_, initrd, ""}).find("initrd"), std::string::npos);
}

TEST(E820, LeavesOutTheHoles) {
  constexpr std::uint64_t kGiB = std::uint64_t{1} << 30;
  const GuestMemory memory(4 * kGiB);
  const std::vector<E820Range> map = memory_map(memory);
  ASSERT_EQ(map.size(), 4u);
  EXPECT_EQ(map[0], (E820Range{GuestAddress{0}, 0x9fc00, E820Type::kUsable}));
  EXPECT_EQ(map[1], (E820Range{GuestAddress{0x9fc00}, 0x60400, E820Type::kReserved}));
  EXPECT_EQ(map[2], (E820Range{GuestAddress{0x100000}, 3 * kGiB - 0x100000, E820Type::kUsable}));
  EXPECT_EQ(map[3], (E820Range{GuestAddress{4 * kGiB}, kGiB, E820Type::kUsable}));
}

}  // namespace
}  // namespace pollux::vmm::boot
