#include "primary/write_overlay.h"

#include <gtest/gtest.h>

#include <random>

namespace pollux::primary {
namespace {

std::shared_ptr<const Bytes> filled(std::size_t length, unsigned char value) {
  return std::make_shared<const Bytes>(length, std::byte{value});
}

// The overlay against the obvious model: an array of bytes, and which operation wrote each.
TEST(WriteOverlay, AgreesWithAPlainArrayUnderRandomOperations) {
  constexpr std::uint64_t kSize = 512;
  std::mt19937_64 random(7);
  for (int round = 0; round < 50; ++round) {
    WriteOverlay overlay;
    Bytes image(kSize, std::byte{0xee});
    Bytes model = image;
    std::vector<std::uint64_t> writer(kSize, 0);
    std::vector<WriteOverlay::Extent> operations(1);
    for (WriteOverlay::Sequence sequence = 1; sequence < 60; ++sequence) {
      const std::uint64_t offset = random() % kSize;
      const std::uint64_t length = 1 + random() % (kSize - offset);
      const bool discard = random() % 4 == 0;
      const auto value = static_cast<unsigned char>(sequence);
      auto data = discard ? nullptr : filled(length, value);
      operations.push_back({offset, length, sequence, data, 0});
      overlay.insert(offset, length, sequence, data);
      for (std::uint64_t i = offset; i < offset + length; ++i) {
        model[i] = discard ? std::byte{0} : std::byte{value};
        writer[i] = sequence;
      }
      if (random() % 5 == 0) {  // an older operation reaches the image
        const auto& done = operations[1 + random() % sequence];
        for (std::uint64_t i = done.offset; i < done.offset + done.length; ++i) {
          if (writer[i] == done.sequence) image[i] = model[i];
        }
        overlay.erase(done.offset, done.length, done.sequence);
      }
      const std::uint64_t from = random() % kSize;
      const std::uint64_t count = 1 + random() % (kSize - from);
      Bytes seen(image.begin() + static_cast<long>(from), image.begin() + static_cast<long>(from + count));
      WriteOverlay::patch(from, seen, overlay.overlapping(from, count));
      ASSERT_TRUE(std::equal(seen.begin(), seen.end(), model.begin() + static_cast<long>(from)));
    }
  }
}

TEST(WriteOverlay, IsEmptyOnceEveryOperationIsOnTheImage) {
  WriteOverlay overlay;
  overlay.insert(0, 100, 1, filled(100, 1));
  overlay.insert(50, 10, 2, filled(10, 2));
  overlay.erase(0, 100, 1);
  EXPECT_EQ(overlay.overlapping(0, 100).size(), 1u);
  overlay.erase(50, 10, 2);
  EXPECT_TRUE(overlay.empty());
}

}  // namespace
}  // namespace pollux::primary
