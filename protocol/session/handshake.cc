#include "protocol/session/handshake.h"

#include <sodium.h>

#include <algorithm>
#include <array>
#include <string>

namespace pollux::protocol::session {
namespace {

// In the clear, so that the other end of a wrong port is told from a wrong key. The last byte is the version.
constexpr std::array<unsigned char, kMagicBytes> kMagic = {'P', 'O', 'L', 'L', 'U', 'X', 0, 1};
constexpr std::string_view kPrologue = "pollux session 1";

constexpr std::byte kOfferAes{1};

const unsigned char* as_unsigned(ByteView bytes) {
  return reinterpret_cast<const unsigned char*>(bytes.data());
}

ByteView prologue() { return std::as_bytes(std::span(kPrologue)); }

// Each of a session's keys: the direction's Noise key, hashed with what it is for, the cipher and the
// transcript.
Secret derive(const Secret& key, std::string_view purpose, Cipher cipher, const TranscriptHash& transcript) {
  Secret derived;
  crypto_generichash_state state;
  crypto_generichash_init(&state, key.data(), kKeyBytes, kKeyBytes);
  crypto_generichash_update(&state, reinterpret_cast<const unsigned char*>(purpose.data()), purpose.size());
  const auto choice = static_cast<unsigned char>(cipher);
  crypto_generichash_update(&state, &choice, 1);
  crypto_generichash_update(&state, as_unsigned(transcript), transcript.size());
  crypto_generichash_final(&state, derived.data(), kKeyBytes);
  sodium_memzero(&state, sizeof state);
  return derived;
}

struct Direction {
  Secret session;
  Secret confirmation;
};

Direction derive_direction(const Secret& key, Cipher cipher, const TranscriptHash& transcript) {
  return {derive(key, "pollux session", cipher, transcript),
          derive(key, "pollux confirmation", cipher, transcript)};
}

Bytes to_bytes(const Secret& confirmation) {
  const ByteView view = confirmation.view();
  return {view.begin(), view.end()};
}

void check_confirmation(const Secret& expected, ByteView received) {
  if (received.size() != kConfirmationBytes ||
      sodium_memcmp(expected.data(), received.data(), kConfirmationBytes) != 0) {
    throw SessionError("handshake not confirmed by the peer");
  }
}

}  // namespace

std::string_view to_string(Cipher cipher) {
  switch (cipher) {
    case Cipher::kChaCha20Poly1305: return "ChaCha20-Poly1305";
    case Cipher::kAes256Gcm: return "AES-256-GCM";
  }
  return "unknown";
}

CipherSet available_ciphers() {
  initialize_crypto();
  return {crypto_aead_aes256gcm_is_available() != 0};
}

Initiator::Initiator(const SecretKey& own, const PublicKey& peer, CipherSet ciphers)
    : peer_(peer), ciphers_(ciphers), noise_(NoiseKk::Role::kInitiator, prologue(), own, peer) {}

Bytes Initiator::message1() {
  const std::byte offer = ciphers_.aes256_gcm ? kOfferAes : std::byte{0};
  const Bytes noise = noise_.write_message(bytes_of(offer));
  POLLUX_ASSERT(noise.size() == kNoiseMessageBytes);
  Bytes message(kMessage1Bytes);
  std::ranges::copy(std::as_bytes(std::span(kMagic)), message.begin());
  std::ranges::copy(noise, message.begin() + kMagicBytes);
  return message;
}

Bytes Initiator::message3(ByteView message2) {
  if (message2.size() != kMessage2Bytes) throw SessionError("handshake message of a wrong length");
  const Bytes choice = noise_.read_message(message2);
  const auto cipher = static_cast<Cipher>(choice.front());
  const bool offered =
      cipher == Cipher::kChaCha20Poly1305 || (cipher == Cipher::kAes256Gcm && ciphers_.aes256_gcm);
  if (!offered) throw SessionError("the peer chose a cipher that was not offered");
  const auto [to_responder, to_initiator] = noise_.split();
  Direction out = derive_direction(to_responder, cipher, noise_.hash());
  Direction in = derive_direction(to_initiator, cipher, noise_.hash());
  keys_ = {cipher, std::move(out.session), std::move(in.session), peer_, noise_.hash()};
  peer_confirmation_ = std::move(in.confirmation);
  return to_bytes(out.confirmation);
}

SessionKeys Initiator::finish(ByteView message4) {
  check_confirmation(peer_confirmation_, message4);
  return std::move(keys_);
}

Responder::Responder(const SecretKey& own, std::vector<PublicKey> accepted, CipherSet ciphers)
    : own_(own), accepted_(std::move(accepted)), ciphers_(ciphers) {}

Cipher Responder::choose(ByteView offer) const {
  if (offer.size() != 1) throw SessionError("handshake message of a wrong length");
  const bool both = (offer.front() & kOfferAes) != std::byte{0} && ciphers_.aes256_gcm;
  return both ? Cipher::kAes256Gcm : Cipher::kChaCha20Poly1305;
}

Bytes Responder::message2(ByteView message1) {
  POLLUX_ASSERT(stage_ == Stage::kStart);
  if (message1.size() != kMessage1Bytes) throw SessionError("handshake message of a wrong length");
  if (!std::ranges::equal(message1.first(kMagicBytes), std::as_bytes(std::span(kMagic)))) {
    throw SessionError("not a Pollux peer, or one of another version");
  }
  // KK does not say who is calling: the first message opens under one of the accepted keys, or under none.
  for (const PublicKey& peer : accepted_) {
    NoiseKk noise(NoiseKk::Role::kResponder, prologue(), own_, peer);
    Bytes offer;
    try {
      offer = noise.read_message(message1.subspan(kMagicBytes));
    } catch (const SessionError&) {
      continue;
    }
    const Cipher cipher = choose(offer);
    const auto choice = static_cast<std::byte>(cipher);
    Bytes answer = noise.write_message(bytes_of(choice));
    const auto [to_responder, to_initiator] = noise.split();
    Direction in = derive_direction(to_responder, cipher, noise.hash());
    Direction out = derive_direction(to_initiator, cipher, noise.hash());
    keys_ = {cipher, std::move(out.session), std::move(in.session), peer, noise.hash()};
    own_confirmation_ = std::move(out.confirmation);
    peer_confirmation_ = std::move(in.confirmation);
    stage_ = Stage::kAnswered;
    return answer;
  }
  throw SessionError("the peer's key is not accepted here, or it expects another key of ours");
}

Bytes Responder::message4(ByteView message3) {
  POLLUX_ASSERT(stage_ == Stage::kAnswered);
  check_confirmation(peer_confirmation_, message3);
  stage_ = Stage::kConfirmed;
  return to_bytes(own_confirmation_);
}

SessionKeys Responder::finish() {
  POLLUX_ASSERT(stage_ == Stage::kConfirmed);
  stage_ = Stage::kFinished;
  return std::move(keys_);
}

}  // namespace pollux::protocol::session
