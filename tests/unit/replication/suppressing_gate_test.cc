#include "backup/suppressing_gate.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "tests/support/temporary_folder.h"
#include "vmm/gates/pass_through.h"

namespace pollux::backup {
namespace {

constexpr std::uint64_t kDiskBytes = 64 << 10;
constexpr vmm::DiskIndex kDisk{0};

class SuppressingGateTest : public ::testing::Test {
 protected:
  SuppressingGateTest() {
    std::vector<std::unique_ptr<vmm::Image>> disks;
    disks.push_back(std::make_unique<vmm::Image>(path_, false));
    backends_ = std::make_unique<vmm::Backends>(std::move(disks), std::vector<std::unique_ptr<vmm::Nic>>{},
                                                vmm::open_console("none", {}), vmm::open_console("none", {}));
    gate_ = std::make_unique<SuppressingGate>(*backends_);
  }

  static Bytes filled(std::size_t bytes, int value) { return Bytes(bytes, static_cast<std::byte>(value)); }
  Bytes read(std::uint64_t offset, std::size_t bytes) {
    Bytes into(bytes);
    EXPECT_TRUE(gate_->read(kDisk, offset, into));
    return into;
  }
  Bytes on_image(std::uint64_t offset, std::size_t bytes) {
    Bytes into(bytes);
    EXPECT_TRUE(backends_->disk(kDisk).read(offset, into));
    return into;
  }

  testing::TemporaryFolder folder_;
  const std::string path_ = folder_.make_file("disk", kDiskBytes);
  std::unique_ptr<vmm::Backends> backends_;
  std::unique_ptr<SuppressingGate> gate_;
};

TEST_F(SuppressingGateTest, AnEpochReadsWhatItWroteAndTheImageHasItWhenApplied) {
  ASSERT_TRUE(gate_->write(kDisk, 1024, filled(1024, 1)));
  ASSERT_TRUE(gate_->write(kDisk, 1536, filled(512, 2)));
  ASSERT_TRUE(gate_->flush(kDisk));
  EXPECT_EQ(read(1024, 512), filled(512, 1));
  EXPECT_EQ(read(1536, 1024).front(), std::byte{2});
  EXPECT_EQ(read(1536, 1024).back(), std::byte{0});
  EXPECT_EQ(on_image(1024, 1024), filled(1024, 0));
  gate_->apply();
  EXPECT_EQ(on_image(1024, 512), filled(512, 1));
  EXPECT_EQ(on_image(1536, 512), filled(512, 2));
  ASSERT_TRUE(gate_->discard(kDisk, 1024, 512));
  EXPECT_EQ(read(1024, 1024).front(), std::byte{0});
  EXPECT_EQ(read(1024, 1024).back(), std::byte{2});
  gate_->apply();
  EXPECT_EQ(on_image(1024, 512), filled(512, 0));
}

TEST_F(SuppressingGateTest, WhatADivergedEpochWroteIsForgotten) {
  ASSERT_TRUE(gate_->write(kDisk, 0, filled(512, 7)));
  gate_->discard();
  EXPECT_EQ(read(0, 512), filled(512, 0));
  gate_->apply();
  EXPECT_EQ(on_image(0, 512), filled(512, 0));
}

TEST_F(SuppressingGateTest, AnImageThatCannotBeReadIsRemembered) {
  EXPECT_EQ(read(0, 512), filled(512, 0));
  EXPECT_NO_THROW(gate_->check_reads());
  std::filesystem::resize_file(path_, 0);
  Bytes into(512);
  EXPECT_FALSE(gate_->read(kDisk, 0, into));
  EXPECT_THROW(gate_->check_reads(), Error);
}

TEST_F(SuppressingGateTest, PromotedItPassesEverythingOn) {
  vmm::PassThroughOutput to(*backends_);
  gate_->promote(to);
  ASSERT_TRUE(gate_->write(kDisk, 512, filled(512, 3)));
  EXPECT_EQ(on_image(512, 512), filled(512, 3));
  EXPECT_EQ(read(512, 512), filled(512, 3));
  EXPECT_TRUE(gate_->flush(kDisk));
}

}  // namespace
}  // namespace pollux::backup
