#include "protocol/message.h"

#include <gtest/gtest.h>

#include <chrono>
#include <random>

namespace pollux::protocol {
namespace {

Hello sample_hello() {
  Hello hello;
  hello.vm.value.fill(std::byte{0x5a});
  hello.term = {7};
  hello.machine_config = Bytes(100, std::byte{3});
  hello.config_digest = digest_config(hello.machine_config);
  hello.disk_bytes = {1 << 20, 512};
  return hello;
}

// One of each kind.
std::vector<Message> samples() {
  return {
      sample_hello(),
      Welcome{kProtocolVersion, {7}, sample_hello().config_digest, {{std::byte{0xa5}}}},
      Refuse{"the disk is too small"},
      DiskDigestRequest{{1}, 5, 100},
      DiskDigests{{1}, 5, 100},
      DiskBlocks{{0}, {{0, 65536, false}, {1 << 20, 1 << 30, true}}},
      SyncPages{{{{16}, 3, false}, {{0x100000}, 1 << 20, true}}},
      SyncMark{3},
      SyncEnd{{0}, 3, 1 << 20, 2, 4000},
      EpochOpen{{1}},
      EpochPages{{1}, {{{1}, 1, false}, {{7}, 255, false}, {{300}, 2, true}}},
      EpochDiskWrites{{1},
                      {{{0}, DiskOperationKind::kWrite, 512, 1024},
                       {{0}, DiskOperationKind::kDiscard, 4096, 1 << 30},
                       {{1}, DiskOperationKind::kZero, 0, 512},
                       {{1}, DiskOperationKind::kFlush, 0, 0}}},
      EpochClose{{1}, 256, 2, 4, true, 777},
      NewTerm{{8}},
      Ack{{1}},
      Heartbeat{99},
      Goodbye{GoodbyeReason::kDropped, "silent"},
      HandOver{{7}},
      EpochInputs{{2}, 40},
      EpochDigest{{2}, 72},
      Executed{{1}},
      Divergence{{2}, 3, false},
      MachineState{{3}, 1000},
  };
}

void expect_refused(const Message& message, std::size_t body, const char* why) {
  const Bytes header = encode(message);
  try {
    static_cast<void>(decode(header, body));
    FAIL() << "accepted " << message;
  } catch (const ProtocolError& error) {
    EXPECT_NE(std::string(error.what()).find(why), std::string::npos) << error.what();
  }
}

TEST(Message, EveryKindRoundTrips) {
  for (const Message& message : samples()) {
    EXPECT_EQ(decode(encode(message), body_length(message)), message) << message;
  }
}

TEST(Message, AClockValueRoundTrips) {
  const Message close = EpochClose{{2}, 0, 0, 0, false, 0, 40, 72, std::chrono::nanoseconds(1'700'000'000'123'456'789)};
  EXPECT_EQ(decode(encode(close), 0), close);
}

TEST(Message, SamplesCoverEveryKind) {
  const auto all = samples();
  ASSERT_EQ(all.size(), std::variant_size_v<Message>);
  for (std::size_t i = 0; i < all.size(); ++i) EXPECT_EQ(all[i].index(), i);
}

TEST(Message, BodyLengthCountsOnlyWhatHasBytes) {
  EXPECT_EQ(body_length(EpochPages{{1}, {{{1}, 3, false}, {{9}, 50, true}}}), 3 * kPageSize);
  EXPECT_EQ(body_length(DiskDigests{{0}, 0, 10}), 160u);
  EXPECT_EQ(body_length(DiskBlocks{{0}, {{0, 1024, false}, {4096, 8192, true}}}), 1024u);
  EXPECT_EQ(body_length(EpochDiskWrites{
                {1}, {{{0}, DiskOperationKind::kWrite, 0, 512}, {{0}, DiskOperationKind::kDiscard, 0, 512}}}),
            512u);
  EXPECT_EQ(body_length(Ack{{1}}), 0u);
  EXPECT_EQ(body_length(EpochInputs{{1}, 40}), 40u);
  EXPECT_EQ(body_length(Divergence{{1}, 3, false}), 24u);
  EXPECT_EQ(body_length(Divergence{{1}, 0, true}), 0u);
}

TEST(Message, HeaderAndBodyMustAgree) {
  for (const Message& message : samples()) expect_refused(message, body_length(message) + 1, "disagree");
}

TEST(Message, LargestMessagesFitTheirBounds) {
  SyncPages pages;
  for (std::uint64_t i = 0; i < kMaxRunsPerMessage; ++i) pages.runs.push_back({{2 * i}, 1, i >= 256});
  EXPECT_EQ(body_length(pages), kMaxBodyBytes);
  EXPECT_EQ(decode(encode(pages), kMaxBodyBytes), Message(pages));

  EpochDiskWrites writes;
  for (std::uint64_t i = 0; i < kMaxDiskOperationsPerMessage; ++i) {
    writes.operations.push_back({{0}, DiskOperationKind::kWrite, i * 1024, 1024});
  }
  EXPECT_EQ(decode(encode(writes), kMaxBodyBytes), Message(writes));

  EXPECT_EQ(decode(encode(EpochInputs{{1}, kMaxBodyBytes}), kMaxBodyBytes), Message(EpochInputs{{1}, kMaxBodyBytes}));
  const Divergence divergence{{1}, kMaxDivergedPages, false};
  EXPECT_EQ(decode(encode(divergence), kMaxDivergedPages * 8), Message(divergence));

  Hello hello = sample_hello();
  hello.machine_config = Bytes(kMaxMachineConfigBytes, std::byte{1});
  EXPECT_EQ(decode(encode(hello), 0), Message(hello));
}

TEST(Message, LongReasonsAreCutNotRefused) {
  const Message decoded = decode(encode(Refuse{std::string(5000, 'x')}), 0);
  EXPECT_EQ(std::get<Refuse>(decoded).reason.size(), kMaxTextBytes);
}

TEST(MessageDeathTest, OwnMessagesOutOfBoundsAreABug) {
  EXPECT_DEATH(static_cast<void>(encode(SyncPages{})), "out of bounds");
  EXPECT_DEATH(static_cast<void>(encode(SyncPages{{{{0}, 257, false}}})), "out of bounds");
  EXPECT_DEATH(static_cast<void>(encode(SyncPages{{{{0}, 0, true}}})), "out of bounds");
  EXPECT_DEATH(static_cast<void>(encode(Ack{{kEpochLimit}})), "out of bounds");
  EXPECT_DEATH(static_cast<void>(encode(NewTerm{{kTermLimit}})), "out of bounds");
  EXPECT_DEATH(static_cast<void>(encode(SyncPages{{{{kPageNumberLimit - 1}, 2, true}}})), "out of bounds");
  EXPECT_DEATH(static_cast<void>(encode(EpochOpen{{1}, static_cast<RecordKind>(2)})), "out of bounds");
  EXPECT_DEATH(static_cast<void>(encode(EpochInputs{{1}, 0})), "out of bounds");
  EXPECT_DEATH(static_cast<void>(encode(EpochInputs{{1}, kMaxBodyBytes + 1})), "out of bounds");
  EXPECT_DEATH(static_cast<void>(encode(EpochDigest{{1}, 0})), "out of bounds");
  EXPECT_DEATH(static_cast<void>(encode(EpochDigest{{kEpochLimit}, 1})), "out of bounds");
  EXPECT_DEATH(static_cast<void>(encode(Executed{{kEpochLimit}})), "out of bounds");
  EXPECT_DEATH(static_cast<void>(encode(Divergence{{1}, kMaxDivergedPages + 1, false})), "out of bounds");
  EXPECT_DEATH(static_cast<void>(encode(Divergence{{1}, 1, true})), "out of bounds");
  EXPECT_DEATH(static_cast<void>(encode(EpochClose{{1}, 0, 0, 0, false, 0, kMaxInputBytesPerEpoch + 1, 1})),
               "out of bounds");
  EXPECT_DEATH(static_cast<void>(encode(EpochClose{{1}, 0, 0, 0, false, 0, 1, 1, std::chrono::nanoseconds(-1)})), "out of bounds");
  EXPECT_DEATH(static_cast<void>(encode(EpochClose{{1}, 0, 0, 0, false, 0, 1, kMaxDigestBytesPerEpoch + 1})),
               "out of bounds");
  EXPECT_DEATH(static_cast<void>(encode(DiskBlocks{{0}, {{100, 512, false}}})), "out of bounds");
  EXPECT_DEATH(static_cast<void>(encode(DiskBlocks{{kMaxDisks}, {{0, 512, false}}})), "out of bounds");
  EXPECT_DEATH(static_cast<void>(encode(DiskBlocks{{0}, {{kMaxDiskBytes, 512, true}}})), "out of bounds");
  EXPECT_DEATH(static_cast<void>(encode(EpochDiskWrites{{1}, {{{0}, DiskOperationKind::kFlush, 0, 512}}})),
               "out of bounds");
}

TEST(Message, TruncatedHeadersAreRefused) {
  for (const Message& message : samples()) {
    const Bytes header = encode(message);
    for (std::size_t length = 0; length < header.size(); ++length) {
      EXPECT_THROW(static_cast<void>(decode(ByteView(header).first(length), body_length(message))),
                   ProtocolError)
          << message << " cut to " << length;
    }
  }
}

TEST(Message, OversizedAndPaddedHeadersAreRefused) {
  EXPECT_THROW(static_cast<void>(decode(Bytes(kMaxHeaderBytes + 8), 0)), ProtocolError);
  Bytes header = encode(Ack{{1}});
  header.resize(header.size() + 8);
  EXPECT_THROW(static_cast<void>(decode(header, 0)), ProtocolError);
}

// Whatever arrives is either refused with a ProtocolError or a message within all bounds, which encodes
// again.
void decode_anything(ByteView header, std::size_t body) {
  try {
    const Message message = decode(header, body);
    EXPECT_EQ(body_length(message), body);
    EXPECT_LE(encode(message).size(), kMaxHeaderBytes);
    EXPECT_FALSE(to_string(message).empty());
  } catch (const ProtocolError&) {
  }
}

TEST(Message, RandomAndMutatedHeadersNeverDoHarm) {
  std::mt19937_64 random(20240611);
  const auto all = samples();
  const auto end = std::chrono::steady_clock::now() + std::chrono::milliseconds(1500);
  std::uint64_t rounds = 0;
  for (; rounds < 2000 || std::chrono::steady_clock::now() < end; ++rounds) {
    Bytes garbage(8 * (random() % 64));
    for (std::byte& byte : garbage) byte = static_cast<std::byte>(random());
    decode_anything(garbage, 0);

    const Message& message = all[random() % all.size()];
    Bytes header = encode(message);
    for (std::uint64_t flips = 1 + random() % 4; flips > 0; --flips) {
      header[random() % header.size()] ^= static_cast<std::byte>(1U << (random() % 8));
    }
    decode_anything(header, body_length(message));
  }
  RecordProperty("rounds", static_cast<int>(rounds));
}

TEST(Message, PageNumbersRoundTripAndMustAscend) {
  const std::vector<PageNumber> pages = {{0}, {16}, {kPageNumberLimit - 1}};
  EXPECT_EQ(decode_page_numbers(encode_page_numbers(pages)), pages);
  EXPECT_TRUE(decode_page_numbers({}).empty());
  for (const std::vector<PageNumber>& wrong :
       {std::vector<PageNumber>{{7}, {7}}, {{8}, {7}}, {{kPageNumberLimit}}}) {
    EXPECT_THROW(static_cast<void>(decode_page_numbers(encode_page_numbers(wrong))), ProtocolError);
  }
  EXPECT_THROW(static_cast<void>(decode_page_numbers(Bytes(12))), ProtocolError);
}

TEST(Message, ReadsAsOneLine) {
  EXPECT_EQ(to_string(Message(EpochOpen{{3}, RecordKind::kInputs})), "EpochOpen(3, inputs)");
  EXPECT_EQ(to_string(Message(EpochClose{{3}, 0, 0, 0, true, 0, 40, 72})),
            "EpochClose(3, inputs 40, digest 72, flushed)");
  EXPECT_EQ(to_string(Message(Divergence{{3}, 2, false})), "Divergence(3, pages 2)");
  EXPECT_EQ(to_string(Message(Divergence{{3}, 0, true})), "Divergence(3, pages all)");
  EXPECT_EQ(to_string(Message(EpochClose{{3}, 2, 0, 1, true, 64})),
            "EpochClose(3, pages 2, zero 0, disk 1, flushed, state 64)");
  EXPECT_EQ(to_string(Message(Goodbye{GoodbyeReason::kPoweredOff, {}})), "Goodbye(powered off)");
  EXPECT_EQ(to_string(Message(EpochPages{{2}, {{{1}, 3, false}, {{8}, 5, true}}})),
            "EpochPages(2, pages 3, zero 5)");
}

TEST(Digest, IsBlake2b) {
  // RFC 7693 has no 128-bit vector; this one is from the reference implementation's `b2sum -l 128` of "abc".
  const std::string text = "abc";
  const BlockDigest digest = digest_block(std::as_bytes(std::span(text)));
  std::string hex;
  for (const std::byte byte : digest) {
    static constexpr char kDigits[] = "0123456789abcdef";
    hex += kDigits[std::to_integer<unsigned>(byte) >> 4];
    hex += kDigits[std::to_integer<unsigned>(byte) & 15];
  }
  EXPECT_EQ(hex, "cf4ab791c62b8d2b2109c90275287816");
}

}  // namespace
}  // namespace pollux::protocol
