#include "vmm/boot/acpi_tables.h"

#include <gtest/gtest.h>

#include <cstring>
#include <map>
#include <numeric>
#include <string>

#include "vmm/boot/aml.h"

namespace pollux::vmm::boot {
namespace {

constexpr GuestAddress kBase{0xe0000};

MachineConfig largest() {
  MachineConfig config;
  config.memory_bytes = 1 << 28;
  config.vcpus = kMaxVcpus;
  config.disks.resize(kMaxDisks);
  config.nics.resize(kMaxNics);
  return config;
}

// Walks the tables as a guest does, by the addresses in them.
class Walk {
 public:
  explicit Walk(const MachineConfig& config) : bytes_(acpi_tables(config, kBase)) {
    EXPECT_EQ(text(0, 8), "RSD PTR ");
    EXPECT_EQ(sum(0, 20), 0);
    EXPECT_EQ(sum(0, 36), 0);
    const auto xsdt = at<std::uint64_t>(24) - kBase.value;
    check(xsdt, "XSDT");
    for (std::uint64_t i = xsdt + 36; i < xsdt + length(xsdt); i += 8) {
      const auto table = at<std::uint64_t>(i) - kBase.value;
      tables_[text(table, 4)] = table;
      check(table, text(table, 4));
    }
  }

  [[nodiscard]] std::uint64_t table(const std::string& name) const { return tables_.at(name); }
  [[nodiscard]] std::uint32_t length(std::uint64_t table) const { return at<std::uint32_t>(table + 4); }
  template <class T>
  [[nodiscard]] T at(std::uint64_t offset) const {
    T value{};
    std::memcpy(&value, bytes_.data() + offset, sizeof value);
    return value;
  }
  [[nodiscard]] std::string text(std::uint64_t offset, std::size_t size) const {
    return {reinterpret_cast<const char*>(bytes_.data()) + offset, size};
  }
  [[nodiscard]] int sum(std::uint64_t offset, std::uint64_t size) const {
    unsigned total = 0;
    for (std::uint64_t i = 0; i < size; ++i) total += std::to_integer<unsigned>(bytes_[offset + i]);
    return static_cast<int>(total & 0xff);
  }
  void check(std::uint64_t table, const std::string& name) const {
    ASSERT_LE(table + length(table), bytes_.size());
    EXPECT_EQ(text(table, 4), name);
    EXPECT_EQ(sum(table, length(table)), 0) << name;
  }

 private:
  Bytes bytes_;
  std::map<std::string, std::uint64_t> tables_;
};

TEST(AcpiTables, AreReachableAndAddUp) {
  const Walk walk(largest());
  const std::uint64_t fadt = walk.table("FACP");
  EXPECT_EQ(walk.length(fadt), 276u);
  EXPECT_EQ(walk.at<std::uint32_t>(fadt + 56), 0x600u);  // PM1a event block
  EXPECT_EQ(walk.at<std::uint32_t>(fadt + 64), 0x604u);  // PM1a control block
  EXPECT_EQ(walk.at<std::uint8_t>(fadt + 116), 1);       // reset register: a port
  EXPECT_EQ(walk.at<std::uint64_t>(fadt + 120), 0x606u);
  EXPECT_EQ(walk.at<std::uint8_t>(fadt + 128), 1);  // reset value
  const std::uint64_t dsdt = walk.at<std::uint64_t>(fadt + 140) - kBase.value;
  walk.check(dsdt, "DSDT");
  const std::uint64_t facs = walk.at<std::uint32_t>(fadt + 36) - kBase.value;
  EXPECT_EQ(walk.text(facs, 4), "FACS");
  EXPECT_EQ((facs + kBase.value) % 64, 0u);
}

TEST(AcpiTables, NameEveryProcessorAndDevice) {
  const Walk walk(largest());
  const std::uint64_t madt = walk.table("APIC");
  unsigned processors = 0;
  for (std::uint64_t i = madt + 44; i < madt + walk.length(madt); i += walk.at<std::uint8_t>(i + 1)) {
    if (walk.at<std::uint8_t>(i) != 0) continue;
    EXPECT_EQ(walk.at<std::uint8_t>(i + 3), processors++);
  }
  EXPECT_EQ(processors, kMaxVcpus);
  const std::uint64_t dsdt = walk.at<std::uint64_t>(walk.table("FACP") + 140) - kBase.value;
  const std::string aml = walk.text(dsdt, walk.length(dsdt));
  unsigned devices = 0;
  for (std::size_t at = aml.find("LNRO0005"); at != std::string::npos; at = aml.find("LNRO0005", at + 1))
    ++devices;
  EXPECT_EQ(devices, kMaxDisks + kMaxNics + 2);
}

std::string hex(const Bytes& bytes) {
  std::string text;
  for (const std::byte byte : bytes) {
    constexpr std::string_view kDigits = "0123456789abcdef";
    text += kDigits[std::to_integer<unsigned>(byte) >> 4];
    text += kDigits[std::to_integer<unsigned>(byte) & 0xf];
  }
  return text;
}

// Expected bytes are what the ACPI reference compiler makes of the same terms.
TEST(Aml, EncodesTerms) {
  EXPECT_EQ(hex(aml::integer(0)), "00");
  EXPECT_EQ(hex(aml::integer(1)), "01");
  EXPECT_EQ(hex(aml::integer(0xff)), "0aff");
  EXPECT_EQ(hex(aml::integer(0x100)), "0b0001");
  EXPECT_EQ(hex(aml::integer(0x10000)), "0c00000100");
  EXPECT_EQ(hex(aml::integer(0x100000000)), "0e0000000001000000");
  EXPECT_EQ(hex(aml::eisa_id("PNP0501")), "0c41d00501");
  EXPECT_EQ(hex(aml::name("\\_S5_", aml::package({aml::integer(5), aml::integer(0)}))),
            "085c5f53355f1205020a0500");
}

TEST(Aml, LengthsCountThemselves) {
  const auto length_of = [](std::size_t payload) {
    const Bytes block = aml::scope("_SB_", {Bytes(payload)});
    const unsigned first = std::to_integer<unsigned>(block[1]);
    std::size_t length = first >> 6 == 0 ? first : first & 0xf;
    for (unsigned i = 0; i < first >> 6; ++i)
      length |= std::to_integer<std::size_t>(block[2 + i]) << (4 + 8 * i);
    return std::pair(length, block.size() - 1);
  };
  for (const std::size_t payload : {0u, 57u, 58u, 59u, 4088u, 4089u, 4090u, 4091u, 100'000u, 1'048'566u}) {
    const auto [said, real] = length_of(payload);
    EXPECT_EQ(said, real) << payload;
  }
}

}  // namespace
}  // namespace pollux::vmm::boot
