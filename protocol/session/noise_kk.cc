#include "protocol/session/noise_kk.h"

#include <sodium.h>

#include <algorithm>
#include <cstring>

namespace pollux::protocol::session {
namespace {

constexpr std::size_t kBlockBytes = 128;  // BLAKE2b's block: the spec's BLOCKLEN
constexpr std::string_view kProtocolName = "Noise_KK_25519_ChaChaPoly_BLAKE2b";

static_assert(kHashBytes == 2 * kKeyBytes);

const unsigned char* as_unsigned(ByteView bytes) {
  return reinterpret_cast<const unsigned char*>(bytes.data());
}

using HashState = crypto_generichash_state;

void hash_begin(HashState& state) { crypto_generichash_init(&state, nullptr, 0, kHashBytes); }
void hash_add(HashState& state, ByteView bytes) {
  crypto_generichash_update(&state, as_unsigned(bytes), bytes.size());
}
void hash_end(HashState& state, unsigned char* out) { crypto_generichash_final(&state, out, kHashBytes); }

// HMAC (RFC 2104) with BLAKE2b-512; the specification wants HMAC, not BLAKE2b's own keyed mode (4.3).
void hmac(ByteView key, ByteView first, ByteView second, unsigned char* out) {
  POLLUX_ASSERT(key.size() <= kBlockBytes);
  unsigned char pad[kBlockBytes] = {};
  std::memcpy(pad, key.data(), key.size());
  for (unsigned char& byte : pad) byte ^= 0x36;
  HashState state;
  hash_begin(state);
  hash_add(state, std::as_bytes(std::span(pad)));
  hash_add(state, first);
  hash_add(state, second);
  unsigned char inner[kHashBytes];
  hash_end(state, inner);
  for (unsigned char& byte : pad) byte ^= 0x36 ^ 0x5c;
  hash_begin(state);
  hash_add(state, std::as_bytes(std::span(pad)));
  hash_add(state, std::as_bytes(std::span(inner)));
  hash_end(state, out);
  sodium_memzero(pad, sizeof pad);
  sodium_memzero(inner, sizeof inner);
  sodium_memzero(&state, sizeof state);
}

// HKDF of the specification (4.3), two outputs of HASHLEN.
struct Derived {
  unsigned char first[kHashBytes];
  unsigned char second[kHashBytes];
  Derived() = default;
  Derived(const Derived&) = delete;
  Derived& operator=(const Derived&) = delete;
  ~Derived() { sodium_memzero(this, sizeof *this); }
};

void hkdf(ByteView chaining_key, ByteView input, Derived& out) {
  static constexpr std::byte kOne{1};
  static constexpr std::byte kTwo{2};
  unsigned char temporary[kHashBytes];
  hmac(chaining_key, input, {}, temporary);
  const ByteView key = std::as_bytes(std::span(temporary));
  hmac(key, {}, bytes_of(kOne), out.first);
  hmac(key, std::as_bytes(std::span(out.first)), bytes_of(kTwo), out.second);
  sodium_memzero(temporary, sizeof temporary);
}

// ChaChaPoly nonces: 32 zero bits, then the counter in little endian (12.3).
void make_nonce(std::uint64_t counter, unsigned char* nonce) {
  std::memset(nonce, 0, crypto_aead_chacha20poly1305_ietf_NPUBBYTES);
  for (unsigned i = 0; i < 8; ++i) nonce[4 + i] = static_cast<unsigned char>(counter >> (8 * i));
}

}  // namespace

SymmetricState::SymmetricState(std::string_view protocol_name) {
  POLLUX_ASSERT(protocol_name.size() <= kHashBytes);
  std::memcpy(hash_.data(), protocol_name.data(), protocol_name.size());
  std::memcpy(chaining_low_.data(), hash_.data(), kKeyBytes);
  std::memcpy(chaining_high_.data(), hash_.data() + kKeyBytes, kKeyBytes);
}

void SymmetricState::derive(ByteView input, Secret& first_low, Secret& first_high, Secret& second) const {
  unsigned char chaining_key[kHashBytes];
  std::memcpy(chaining_key, chaining_low_.data(), kKeyBytes);
  std::memcpy(chaining_key + kKeyBytes, chaining_high_.data(), kKeyBytes);
  Derived derived;
  hkdf(std::as_bytes(std::span(chaining_key)), input, derived);
  sodium_memzero(chaining_key, sizeof chaining_key);
  std::memcpy(first_low.data(), derived.first, kKeyBytes);
  std::memcpy(first_high.data(), derived.first + kKeyBytes, kKeyBytes);
  std::memcpy(second.data(), derived.second, kKeyBytes);  // truncated to a key (5.2)
}

void SymmetricState::mix_key(ByteView input) {
  derive(input, chaining_low_, chaining_high_, key_);
  nonce_ = 0;
}

void SymmetricState::mix_hash(ByteView data) {
  HashState state;
  hash_begin(state);
  hash_add(state, hash_);
  hash_add(state, data);
  hash_end(state, reinterpret_cast<unsigned char*>(hash_.data()));
}

Bytes SymmetricState::encrypt_and_hash(ByteView plaintext) {
  unsigned char nonce[crypto_aead_chacha20poly1305_ietf_NPUBBYTES];
  make_nonce(nonce_++, nonce);
  Bytes sealed(plaintext.size() + kTagBytes);
  crypto_aead_chacha20poly1305_ietf_encrypt(reinterpret_cast<unsigned char*>(sealed.data()), nullptr,
                                            as_unsigned(plaintext), plaintext.size(), as_unsigned(hash_),
                                            hash_.size(), nullptr, nonce, key_.data());
  mix_hash(sealed);
  return sealed;
}

Bytes SymmetricState::decrypt_and_hash(ByteView sealed) {
  if (sealed.size() < kTagBytes) throw SessionError("handshake message too short");
  unsigned char nonce[crypto_aead_chacha20poly1305_ietf_NPUBBYTES];
  make_nonce(nonce_++, nonce);
  Bytes plaintext(sealed.size() - kTagBytes);
  if (crypto_aead_chacha20poly1305_ietf_decrypt(reinterpret_cast<unsigned char*>(plaintext.data()), nullptr,
                                                nullptr, as_unsigned(sealed), sealed.size(),
                                                as_unsigned(hash_), hash_.size(), nonce, key_.data()) != 0) {
    throw SessionError("handshake not authentic: the peer has another key, or the bytes were changed");
  }
  mix_hash(sealed);
  return plaintext;
}

std::pair<Secret, Secret> SymmetricState::split() {
  Secret first;
  Secret first_rest;
  Secret second;
  derive({}, first, first_rest, second);
  return {std::move(first), std::move(second)};
}

NoiseKk::NoiseKk(Role role, ByteView prologue, const SecretKey& own, const PublicKey& peer,
                 SecretKey ephemeral)
    : role_(role), own_(own), peer_(peer), ephemeral_(std::move(ephemeral)), symmetric_(kProtocolName) {
  symmetric_.mix_hash(prologue);
  const bool initiator = role == Role::kInitiator;
  symmetric_.mix_hash((initiator ? own_.public_key() : peer_).bytes);
  symmetric_.mix_hash((initiator ? peer_ : own_.public_key()).bytes);
}

Bytes NoiseKk::write_message(ByteView payload) {
  POLLUX_ASSERT(message_ == (role_ == Role::kInitiator ? 0 : 1));
  const PublicKey& e = ephemeral_.public_key();
  Bytes message(e.bytes.begin(), e.bytes.end());
  symmetric_.mix_hash(e.bytes);
  mix_tokens();
  const Bytes sealed = symmetric_.encrypt_and_hash(payload);
  message.insert(message.end(), sealed.begin(), sealed.end());
  return message;
}

Bytes NoiseKk::read_message(ByteView message) {
  POLLUX_ASSERT(message_ == (role_ == Role::kInitiator ? 1 : 0));
  if (message.size() < kKeyBytes + kTagBytes) throw SessionError("handshake message too short");
  std::ranges::copy(message.first(kKeyBytes), peer_ephemeral_.bytes.begin());
  symmetric_.mix_hash(peer_ephemeral_.bytes);
  mix_tokens();
  return symmetric_.decrypt_and_hash(message.subspan(kKeyBytes));
}

// Of the message in progress; the first letter is the initiator's key, the second the responder's.
void NoiseKk::mix_tokens() {
  const bool initiator = role_ == Role::kInitiator;
  if (message_ == 0) {
    initiator ? mix_dh(ephemeral_, peer_) : mix_dh(own_, peer_ephemeral_);  // es
    mix_dh(own_, peer_);                                                    // ss
  } else {
    mix_dh(ephemeral_, peer_ephemeral_);                                    // ee
    initiator ? mix_dh(own_, peer_ephemeral_) : mix_dh(ephemeral_, peer_);  // se
  }
  ++message_;
}

void NoiseKk::mix_dh(const SecretKey& secret, const PublicKey& point) {
  Secret shared;
  // Refuses the all-zero result of a point of small order (RFC 7748, section 6.1).
  if (crypto_scalarmult(shared.data(), secret.secret().data(), as_unsigned(point.bytes)) != 0) {
    throw SessionError("handshake with a worthless public key");
  }
  symmetric_.mix_key(shared.view());
}

std::pair<Secret, Secret> NoiseKk::split() {
  POLLUX_ASSERT(message_ == 2);
  return symmetric_.split();
}

}  // namespace pollux::protocol::session
