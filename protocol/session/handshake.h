// How two hosts that pinned each other's public keys agree on the keys of one connection.
//
//     1. initiator -> responder   magic, Noise KK message 1 (payload: ciphers offered)
//     2. responder -> initiator   Noise KK message 2 (payload: cipher chosen)
//     3. initiator -> responder   key confirmation
//     4. responder -> initiator   key confirmation
//
// KK's first message can be replayed (Noise specification 7.7): the responder knows a live initiator only
// after message 3, and neither side accepts anything else before the peer's confirmation. The transcript hash
// covers the protocol's name and version (prologue), both static keys, both ephemeral keys, and the offer and
// choice of the cipher, which are authenticated payloads: nobody in between can downgrade it.
//
// Pure: bytes in, bytes out; every message has a fixed length. Throws SessionError, after which the object is
// of no more use.
#pragma once

#include <cstdint>
#include <optional>
#include <ostream>
#include <string_view>
#include <vector>

#include "protocol/session/keys.h"
#include "protocol/session/noise_kk.h"
#include "protocol/session/session_error.h"

namespace pollux::protocol::session {

enum class Cipher : std::uint8_t { kChaCha20Poly1305 = 1, kAes256Gcm = 2 };
[[nodiscard]] std::string_view to_string(Cipher cipher);
inline std::ostream& operator<<(std::ostream& out, Cipher cipher) { return out << to_string(cipher); }

// ChaCha20-Poly1305 (RFC 8439) always; AES-256-GCM only where the CPU does it (libsodium has no other), and
// then preferred.
struct CipherSet {
  bool aes256_gcm = false;
};
[[nodiscard]] CipherSet available_ciphers();

inline constexpr std::size_t kMagicBytes = 8;
inline constexpr std::size_t kNoiseMessageBytes = kKeyBytes + 1 + kTagBytes;
inline constexpr std::size_t kMessage1Bytes = kMagicBytes + kNoiseMessageBytes;
inline constexpr std::size_t kMessage2Bytes = kNoiseMessageBytes;
inline constexpr std::size_t kConfirmationBytes = 32;

// What a handshake yields.
struct SessionKeys {
  Cipher cipher = Cipher::kChaCha20Poly1305;
  Secret send;
  Secret receive;
  PublicKey peer;
  TranscriptHash transcript{};
};

// The keys given must outlive the handshake.
class Initiator {
 public:
  Initiator(const SecretKey& own, const PublicKey& peer, CipherSet ciphers);
  [[nodiscard]] Bytes message1();
  [[nodiscard]] Bytes message3(ByteView message2);
  [[nodiscard]] SessionKeys finish(ByteView message4);

 private:
  PublicKey peer_;
  CipherSet ciphers_;
  NoiseKk noise_;
  SessionKeys keys_;
  Secret peer_confirmation_;
};

class Responder {
 public:
  Responder(const SecretKey& own, std::vector<PublicKey> accepted, CipherSet ciphers);
  [[nodiscard]] Bytes message2(ByteView message1);
  [[nodiscard]] Bytes message4(ByteView message3);
  // After message4().
  [[nodiscard]] SessionKeys finish();

 private:
  [[nodiscard]] Cipher choose(ByteView offer) const;

  const SecretKey& own_;
  std::vector<PublicKey> accepted_;
  CipherSet ciphers_;
  SessionKeys keys_;
  Secret own_confirmation_;
  Secret peer_confirmation_;
  enum class Stage { kStart, kAnswered, kConfirmed, kFinished } stage_ = Stage::kStart;
};

}  // namespace pollux::protocol::session
