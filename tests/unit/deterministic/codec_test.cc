// What comes from a file or a peer is decoded as it was encoded, or refused.
#include <gtest/gtest.h>

#include <random>

#include "base/error.h"
#include "vmm/deterministic/digest.h"
#include "vmm/deterministic/epoch_inputs.h"

namespace pollux::vmm {
namespace {

EpochInputs some_inputs() {
  EpochInputs inputs;
  inputs.length = {123'456};
  inputs.environment = {1, ~std::uint64_t{0}, 42};
  inputs.boundary = EpochBoundary::kWaited;
  inputs.clock = std::chrono::seconds(1'700'000'000);
  inputs.completions = {{{0}, {7, 0}}, {{3}, {300, 0x50}}};
  inputs.arrivals = {FrameArrival{{1}, Bytes(60, std::byte{5})}, ConsoleArrival{{1}, Bytes(3, std::byte{'x'})}};
  return inputs;
}

EpochDigest some_digest() { return {{1, 2}, {3, 4}, {10, 11}, {{{5}, 6}, {{900}, 8}}}; }

// Truncated, extended and flipped: refused by an Error, or decoded to something else; never anything worse.
template <class Decode>
std::size_t count_refused(const Bytes& whole, Decode decode) {
  std::size_t refused = 0;
  const auto attempt = [&](const Bytes& bytes) {
    try {
      (void)decode(bytes);
    } catch (const Error&) {
      ++refused;
    }
  };
  for (std::size_t length = 0; length < whole.size(); ++length) {
    attempt({whole.begin(), whole.begin() + static_cast<std::ptrdiff_t>(length)});
  }
  EXPECT_EQ(refused, whole.size());
  std::mt19937_64 random(3);
  for (int i = 0; i < 20'000; ++i) {
    Bytes damaged = whole;
    for (std::uint64_t flips = 1 + random() % 6; flips > 0; --flips) {
      damaged[random() % damaged.size()] = static_cast<std::byte>(random());
    }
    if (i % 3 == 0) damaged.resize(random() % (2 * damaged.size()));
    attempt(damaged);
  }
  return refused;
}

TEST(EpochInputsCodec, RoundTripsAndRefusesEverythingElse) {
  const Bytes whole = encode(some_inputs());
  EXPECT_EQ(encode(decode_epoch_inputs(whole)), whole);
  EXPECT_GT(count_refused(whole, decode_epoch_inputs), 5'000u);
}

TEST(EpochDigestCodec, RoundTripsAndRefusesEverythingElse) {
  const Bytes whole = encode(some_digest());
  EXPECT_EQ(decode_epoch_digest(whole), some_digest());
  EXPECT_GT(count_refused(whole, decode_epoch_digest), 5'000u);
}

TEST(EpochDigest, SaysWhatDiffersByAddress) {
  EpochDigest other = some_digest();
  EXPECT_EQ(difference(some_digest(), other), std::nullopt);
  other.pages[1].content = 0;
  EXPECT_EQ(difference(some_digest(), other), "page 0x384000");
  other.registers = {};
  other.pages.erase(other.pages.begin());
  EXPECT_EQ(difference(some_digest(), other), "registers, 2 pages: 0x5000 0x384000");
}

}  // namespace
}  // namespace pollux::vmm
