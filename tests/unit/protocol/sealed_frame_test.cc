#include "protocol/session/sealed_frame.h"

#include <gtest/gtest.h>

#include <random>

namespace pollux::protocol::session {
namespace {

constexpr FrameLimits kLimits{64 << 10, 1 << 20};

struct Opened {
  Bytes header;
  Bytes body;
  bool operator==(const Opened&) const = default;
};

class SealedFrame : public ::testing::TestWithParam<Cipher> {
 protected:
  void SetUp() override {
    if (GetParam() == Cipher::kAes256Gcm && !available_ciphers().aes256_gcm) GTEST_SKIP() << "no AES-NI here";
  }

  static Secret key() { return Secret(Bytes(kKeyBytes, std::byte{0x42})); }
  static Sealer sealer(std::uint64_t rekey = kRekeyPieces) { return {GetParam(), key(), rekey}; }
  static Opener opener(std::uint64_t rekey = kRekeyPieces) { return {GetParam(), key(), kLimits, rekey}; }

  static Bytes seal(Sealer& sealer, const Opened& frame, const std::vector<std::size_t>& cuts = {}) {
    std::vector<ByteView> pieces;
    ByteView rest = frame.body;
    for (const std::size_t cut : cuts) {
      pieces.push_back(rest.first(cut));
      rest = rest.subspan(cut);
    }
    pieces.push_back(rest);
    Bytes out(sealed_frame_bytes(
        {static_cast<std::uint32_t>(frame.header.size()), static_cast<std::uint32_t>(frame.body.size())}));
    sealer.seal(frame.header, pieces, out);
    return out;
  }

  // What a receiver does with a stream; throws SessionError also when the stream ends early.
  static Opened open(Opener& opener, Bytes sealed) {
    MutableByteView rest = sealed;
    const auto take = [&](std::size_t bytes) {
      if (rest.size() < bytes) throw SessionError("the stream ended");
      const MutableByteView part = rest.first(bytes);
      rest = rest.subspan(bytes);
      return part;
    };
    const FrameLengths lengths = opener.begin(take(kPrefixBytes));
    const ByteView header = opener.open_header(take(sealed_header_bytes(lengths.header)));
    Opened opened{{header.begin(), header.end()}, Bytes(lengths.body)};
    opener.open_body(take(sealed_body_bytes(lengths.body)), opened.body);
    return opened;
  }

  static Opened sample(std::size_t header, std::size_t body) {
    std::mt19937_64 random(body + header);
    Opened frame{Bytes(header), Bytes(body)};
    for (std::byte& byte : frame.header) byte = static_cast<std::byte>(random());
    for (std::byte& byte : frame.body) byte = static_cast<std::byte>(random());
    return frame;
  }
};

TEST_P(SealedFrame, RoundTripsAllShapes) {
  Sealer out = sealer();
  Opener in = opener();
  for (const std::size_t body : {0, 1, 4095, 4096, 4097, 8192, 100'000, 1 << 20}) {
    for (const std::size_t header : {0, 8, 65536}) {
      const Opened frame = sample(header, body);
      EXPECT_EQ(open(in, seal(out, frame)), frame) << header << " + " << body;
    }
  }
}

TEST_P(SealedFrame, ScatteredBodiesArriveContiguous) {
  Sealer out = sealer();
  Opener in = opener();
  const Opened frame = sample(24, 20'000);
  for (const std::vector<std::size_t>& cuts : std::vector<std::vector<std::size_t>>{
           {4096, 4096, 4096, 4096}, {0, 512, 0, 0, 1536}, {4095, 2, 4095}, {20'000}, {1, 1, 1, 1, 9000}}) {
    EXPECT_EQ(open(in, seal(out, frame, cuts)), frame);
  }
}

TEST_P(SealedFrame, SurvivesRekeying) {
  Sealer out = sealer(3);
  Opener in = opener(3);
  for (int i = 0; i < 20; ++i) {
    const Opened frame = sample(16, 10'000);
    EXPECT_EQ(open(in, seal(out, frame)), frame);
  }
  Sealer once = sealer(1);
  Opener never = opener();
  EXPECT_EQ(open(never, seal(once, sample(8, 0))), sample(8, 0));
  EXPECT_THROW(open(never, seal(once, sample(8, 0))), SessionError);
}

TEST_P(SealedFrame, EqualFramesLookDifferent) {
  Sealer out = sealer();
  const Opened frame = sample(16, 4096);
  const Bytes first = seal(out, frame);
  const Bytes second = seal(out, frame);
  EXPECT_FALSE(std::equal(first.begin() + kPrefixBytes, first.end(), second.begin() + kPrefixBytes));
}

TEST_P(SealedFrame, AFlippedBitInAnyByteIsNoticed) {
  Sealer out = sealer();
  const Bytes sealed = seal(out, sample(16, 4200));
  for (std::size_t at = 0; at < sealed.size(); ++at) {
    Opener in = opener();
    Bytes changed = sealed;
    changed[at] ^= std::byte{1};
    EXPECT_THROW(open(in, std::move(changed)), SessionError) << at;
  }
}

TEST_P(SealedFrame, ATruncatedFrameIsNoticed) {
  Sealer out = sealer();
  const Bytes sealed = seal(out, sample(16, 4200));
  for (std::size_t length = 0; length < sealed.size(); length += 7) {
    Opener in = opener();
    EXPECT_THROW(open(in, Bytes(sealed.begin(), sealed.begin() + static_cast<std::ptrdiff_t>(length))),
                 SessionError);
  }
}

TEST_P(SealedFrame, ReplayReorderAndLossAreNoticed) {
  Sealer out = sealer();
  const Bytes first = seal(out, sample(16, 100));
  const Bytes second = seal(out, sample(16, 100));
  {
    Opener in = opener();
    static_cast<void>(open(in, first));
    EXPECT_THROW(open(in, first), SessionError);
  }
  {
    Opener in = opener();
    EXPECT_THROW(open(in, second), SessionError);
  }
  {
    // With the frame number made to fit, it is the nonce that does not.
    Opener in = opener();
    static_cast<void>(open(in, first));
    Bytes renumbered = first;
    renumbered[8] = std::byte{1};
    EXPECT_THROW(open(in, renumbered), SessionError);
  }
}

TEST_P(SealedFrame, PiecesCannotBeSwapped) {
  Sealer out = sealer();
  Bytes sealed = seal(out, sample(16, 8192));
  const auto body = sealed.begin() + static_cast<std::ptrdiff_t>(kPrefixBytes + sealed_header_bytes(16));
  const auto piece = static_cast<std::ptrdiff_t>(kPieceBytes + kTagBytes);
  std::swap_ranges(body, body + piece, body + piece);
  Opener in = opener();
  EXPECT_THROW(open(in, std::move(sealed)), SessionError);
}

TEST_P(SealedFrame, OversizedLengthsAreRefusedByThePrefixAlone) {
  for (const std::size_t field : {0, 4}) {
    Sealer out = sealer();
    Bytes prefix = seal(out, sample(8, 8));
    prefix.resize(kPrefixBytes);
    prefix[field + 3] = std::byte{0x7f};
    Opener in = opener();
    EXPECT_THROW(static_cast<void>(in.begin(prefix)), SessionError);
  }
}

TEST_P(SealedFrame, AnotherKeyDoesNotOpen) {
  Sealer out = sealer();
  Opener in(GetParam(), Secret(), kLimits);
  EXPECT_THROW(open(in, seal(out, sample(8, 8))), SessionError);
}

INSTANTIATE_TEST_SUITE_P(Ciphers, SealedFrame,
                         ::testing::Values(Cipher::kChaCha20Poly1305, Cipher::kAes256Gcm),
                         [](const auto& info) {
                           return info.param == Cipher::kAes256Gcm ? "Aes256Gcm" : "ChaCha20Poly1305";
                         });

}  // namespace
}  // namespace pollux::protocol::session
