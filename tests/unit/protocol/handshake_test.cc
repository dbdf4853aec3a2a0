#include "protocol/session/handshake.h"

#include <gtest/gtest.h>

#include <string_view>

namespace pollux::protocol::session {
namespace {

Bytes from_hex(std::string_view hex) {
  Bytes bytes;
  for (std::size_t i = 0; i < hex.size(); i += 2) {
    bytes.push_back(static_cast<std::byte>(std::stoi(std::string(hex.substr(i, 2)), nullptr, 16)));
  }
  return bytes;
}

SecretKey secret_from_hex(std::string_view hex) { return SecretKey(Secret(from_hex(hex))); }

// Test vector of the Noise implementation `cacophony` for Noise_KK_25519_ChaChaPoly_BLAKE2b.
TEST(NoiseKk, AgreesWithThePublishedVector) {
  const SecretKey initiator_static =
      secret_from_hex("e61ef9919cde45dd5f82166404bd08e38bceb5dfdfded0a34c8df7ed542214d1");
  const SecretKey responder_static =
      secret_from_hex("4a3acbfdb163dec651dfa3194dece676d437029c62a408b4c5ea9114246e4893");
  const Bytes prologue = from_hex("50726f6c6f677565313233");
  NoiseKk initiator(NoiseKk::Role::kInitiator, prologue, initiator_static, responder_static.public_key(),
                    secret_from_hex("893e28b9dc6ca8d611ab664754b8ceb7bac5117349a4439a6b0569da977c464a"));
  NoiseKk responder(NoiseKk::Role::kResponder, prologue, responder_static, initiator_static.public_key(),
                    secret_from_hex("bbdb4cdbd309f1a1f2e1456967fe288cadd6f712d65dc7b7793d5e63da6b375b"));

  const Bytes payload1 = from_hex("4c756477696720766f6e204d69736573");
  const Bytes message1 = initiator.write_message(payload1);
  EXPECT_EQ(message1, from_hex("ca35def5ae56cec33dc2036731ab14896bc4c75dbb07a61f879f8e3afa4c7944"
                               "f79a1d4b21fc3ea4a0c87213b8b4f05921228879fb74ea0d39ffc64619dc9658"));
  EXPECT_EQ(responder.read_message(message1), payload1);

  const Bytes payload2 = from_hex("4d757272617920526f746862617264");
  const Bytes message2 = responder.write_message(payload2);
  EXPECT_EQ(message2, from_hex("95ebc60d2b1fa672c1f46a8aa265ef51bfe38e7ccb39ec5be34069f144808843"
                               "e20b1bf85731f75d7e21b5d54baaa6a1dd8690bb26b34c92c02b152d726c01"));
  EXPECT_EQ(initiator.read_message(message2), payload2);

  const Bytes hash = from_hex(
      "449b8bddaf3d2f8999318d213d1db80a90d373bac67ce7aafcc444fc895414a9"
      "7e82fb7797b2ae85f29199856789e9b8aef2a58faa828267ba4f2b09d89692d3");
  EXPECT_TRUE(std::ranges::equal(initiator.hash(), hash));
  EXPECT_TRUE(std::ranges::equal(responder.hash(), hash));
}

class Handshake : public ::testing::Test {
 protected:
  Initiator initiator(CipherSet ciphers = {}) { return {primary_, backup_.public_key(), ciphers}; }
  Responder responder(CipherSet ciphers = {}) { return {backup_, {primary_.public_key()}, ciphers}; }

  static void expect_session(Initiator initiator, Responder responder, Cipher cipher) {
    const Bytes message4 = responder.message4(initiator.message3(responder.message2(initiator.message1())));
    const SessionKeys ours = initiator.finish(message4);
    const SessionKeys theirs = responder.finish();
    EXPECT_EQ(ours.cipher, cipher);
    EXPECT_EQ(theirs.cipher, cipher);
    EXPECT_TRUE(std::ranges::equal(ours.send.view(), theirs.receive.view()));
    EXPECT_TRUE(std::ranges::equal(ours.receive.view(), theirs.send.view()));
    EXPECT_FALSE(std::ranges::equal(ours.receive.view(), ours.send.view()));
    EXPECT_EQ(ours.transcript, theirs.transcript);
  }

  SecretKey primary_ = SecretKey::generate();
  SecretKey backup_ = SecretKey::generate();
  SecretKey stranger_ = SecretKey::generate();
};

TEST_F(Handshake, ChoosesAesOnlyWhenBothHaveIt) {
  const CipherSet aes{true};
  expect_session(initiator(aes), responder(aes), Cipher::kAes256Gcm);
  expect_session(initiator(aes), responder(), Cipher::kChaCha20Poly1305);
  expect_session(initiator(), responder(aes), Cipher::kChaCha20Poly1305);
  expect_session(initiator(), responder(), Cipher::kChaCha20Poly1305);
}

TEST_F(Handshake, TheResponderFindsTheCallerAmongSeveral) {
  Initiator calling = initiator();
  Responder answering(backup_, {stranger_.public_key(), primary_.public_key()}, {});
  const Bytes message4 = answering.message4(calling.message3(answering.message2(calling.message1())));
  EXPECT_EQ(answering.finish().peer, primary_.public_key());
  EXPECT_EQ(calling.finish(message4).peer, backup_.public_key());
}

TEST_F(Handshake, AStrangerIsRefusedByTheFirstMessage) {
  Initiator calling(stranger_, backup_.public_key(), {});
  Responder answering = responder();
  EXPECT_THROW(static_cast<void>(answering.message2(calling.message1())), SessionError);
}

TEST_F(Handshake, ACallerWhoExpectsAnotherBackupIsRefused) {
  Initiator calling(primary_, stranger_.public_key(), {});
  Responder answering = responder();
  EXPECT_THROW(static_cast<void>(answering.message2(calling.message1())), SessionError);
}

TEST_F(Handshake, AnImpostorCannotAnswer) {
  Initiator calling = initiator();
  Initiator to_impostor(primary_, stranger_.public_key(), {});
  Responder impostor(stranger_, {primary_.public_key()}, {});
  static_cast<void>(calling.message1());
  const Bytes answer = impostor.message2(to_impostor.message1());
  EXPECT_THROW(static_cast<void>(calling.message3(answer)), SessionError);
}

TEST_F(Handshake, AReplayedFirstMessageGetsNoFurther) {
  Initiator calling = initiator();
  Responder first = responder();
  const Bytes message1 = calling.message1();
  const Bytes message3 = calling.message3(first.message2(message1));
  static_cast<void>(first.message4(message3));

  Responder second = responder();
  static_cast<void>(second.message2(message1));
  EXPECT_THROW(static_cast<void>(second.message4(message3)), SessionError);
}

TEST_F(Handshake, ReplayedAnswersAreRefused) {
  Initiator old = initiator();
  Responder answering = responder();
  const Bytes message2 = answering.message2(old.message1());
  const Bytes message4 = answering.message4(old.message3(message2));

  Initiator calling = initiator();
  Responder fresh = responder();
  const Bytes message1 = calling.message1();
  {
    Initiator victim = initiator();
    static_cast<void>(victim.message1());
    EXPECT_THROW(static_cast<void>(victim.message3(message2)), SessionError);
  }
  static_cast<void>(calling.message3(fresh.message2(message1)));
  EXPECT_THROW(static_cast<void>(calling.finish(message4)), SessionError);
}

TEST_F(Handshake, AReflectedConfirmationIsRefused) {
  Initiator calling = initiator();
  Responder answering = responder();
  const Bytes message3 = calling.message3(answering.message2(calling.message1()));
  EXPECT_THROW(static_cast<void>(calling.finish(message3)), SessionError);
}

// Runs a handshake in which message `which` (1..4) goes through `change`; true when both sides accepted all.
bool survives(Initiator calling, Responder answering, int which, const std::function<void(Bytes&)>& change) {
  const auto pass = [&](int number, Bytes message) {
    if (number == which) change(message);
    return message;
  };
  try {
    const Bytes message1 = pass(1, calling.message1());
    const Bytes message2 = pass(2, answering.message2(message1));
    const Bytes message3 = pass(3, calling.message3(message2));
    const Bytes message4 = pass(4, answering.message4(message3));
    static_cast<void>(calling.finish(message4));
    return true;
  } catch (const SessionError&) {
    return false;
  }
}

constexpr std::size_t kLengths[] = {0, kMessage1Bytes, kMessage2Bytes, kConfirmationBytes,
                                    kConfirmationBytes};

TEST_F(Handshake, AFlippedBitInAnyByteIsNoticed) {
  for (int which = 1; which <= 4; ++which) {
    for (std::size_t at = 0; at < kLengths[which]; ++at) {
      // X25519 ignores the highest bit of a point (RFC 7748, section 5); the transcript does not.
      for (const unsigned bit : {0U, 7U}) {
        EXPECT_FALSE(survives(initiator(), responder(), which,
                              [&](Bytes& message) { message[at] ^= static_cast<std::byte>(1U << bit); }))
            << "message " << which << " byte " << at << " bit " << bit;
      }
    }
  }
}

TEST_F(Handshake, TruncatedAndExtendedMessagesAreRefused) {
  for (int which = 1; which <= 4; ++which) {
    for (std::size_t length = 0; length < kLengths[which]; ++length) {
      EXPECT_FALSE(
          survives(initiator(), responder(), which, [&](Bytes& message) { message.resize(length); }));
    }
    EXPECT_FALSE(survives(initiator(), responder(), which, [](Bytes& message) { message.push_back({}); }));
  }
  EXPECT_TRUE(survives(initiator(), responder(), 0, [](Bytes&) {}));
}

TEST_F(Handshake, WorthlessPointsAreRefused) {
  // RFC 7748, section 6.1: a point of small order makes the shared secret all zero.
  EXPECT_FALSE(survives(initiator(), responder(), 1, [](Bytes& message) {
    std::fill_n(message.begin() + kMagicBytes, kKeyBytes, std::byte{0});
  }));
  const PublicKey zero{};
  Initiator calling(primary_, zero, {});
  EXPECT_THROW(static_cast<void>(calling.message1()), SessionError);
}

}  // namespace
}  // namespace pollux::protocol::session
