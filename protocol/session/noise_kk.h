// Noise_KK_25519_ChaChaPoly_BLAKE2b, exactly as in the Noise Protocol Framework, revision 34
// (noiseprotocol.org):
//     -> s      (known before)
//     <- s      (known before)
//     -> e, es, ss
//     <- e, ee, se
// Pure: bytes in, bytes out.
#pragma once

#include <array>
#include <optional>
#include <string_view>
#include <utility>

#include "base/bytes.h"
#include "protocol/session/keys.h"
#include "protocol/session/session_error.h"

namespace pollux::protocol::session {

inline constexpr std::size_t kTagBytes = 16;
inline constexpr std::size_t kHashBytes = 64;  // BLAKE2b-512: the spec's HASHLEN

using TranscriptHash = std::array<std::byte, kHashBytes>;

// Section 5.2 of the specification, with the CipherState (5.1) of the handshake inside.
class SymmetricState {
 public:
  explicit SymmetricState(std::string_view protocol_name);
  void mix_key(ByteView input);
  void mix_hash(ByteView data);
  [[nodiscard]] Bytes encrypt_and_hash(ByteView plaintext);
  [[nodiscard]] Bytes decrypt_and_hash(ByteView sealed);  // throws SessionError
  [[nodiscard]] std::pair<Secret, Secret> split();
  [[nodiscard]] const TranscriptHash& hash() const { return hash_; }

 private:
  // HKDF of the chaining key and `input`.
  void derive(ByteView input, Secret& first_low, Secret& first_high, Secret& second) const;

  TranscriptHash hash_{};
  // The chaining key is HASHLEN long: two Secrets.
  Secret chaining_low_;
  Secret chaining_high_;
  Secret key_;
  std::uint64_t nonce_ = 0;
};

// One side's handshake. Calls in the pattern's order (asserted); after a SessionError it is of no more use.
class NoiseKk {
 public:
  enum class Role { kInitiator, kResponder };

  NoiseKk(Role role, ByteView prologue, const SecretKey& own, const PublicKey& peer,
          SecretKey ephemeral = SecretKey::generate());

  [[nodiscard]] Bytes write_message(ByteView payload);
  [[nodiscard]] Bytes read_message(ByteView message);  // the payload
  // After both messages: keys for initiator to responder, and back.
  [[nodiscard]] std::pair<Secret, Secret> split();
  [[nodiscard]] const TranscriptHash& hash() const { return symmetric_.hash(); }

 private:
  void mix_tokens();
  void mix_dh(const SecretKey& secret, const PublicKey& point);

  Role role_;
  const SecretKey& own_;
  PublicKey peer_;
  SecretKey ephemeral_;
  PublicKey peer_ephemeral_;
  SymmetricState symmetric_;
  int message_ = 0;  // messages done
};

}  // namespace pollux::protocol::session
