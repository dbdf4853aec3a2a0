#include "protocol/session/sealed_frame.h"

#include <sodium.h>

#include <algorithm>
#include <cstring>
#include <limits>
#include <new>

namespace pollux::protocol::session {
namespace {

constexpr std::size_t kNonceBytes = 12;
static_assert(kNonceBytes == crypto_aead_aes256gcm_NPUBBYTES);
static_assert(kNonceBytes == crypto_aead_chacha20poly1305_ietf_NPUBBYTES);
static_assert(kTagBytes == crypto_aead_aes256gcm_ABYTES);
static_assert(kTagBytes == crypto_aead_chacha20poly1305_ietf_ABYTES);

const unsigned char* as_unsigned(const std::byte* bytes) {
  return reinterpret_cast<const unsigned char*>(bytes);
}
unsigned char* as_unsigned(std::byte* bytes) { return reinterpret_cast<unsigned char*>(bytes); }

template <class T>
void store(std::byte* at, T value) {
  for (unsigned i = 0; i < sizeof(T); ++i) at[i] = static_cast<std::byte>(value >> (8 * i));
}

template <class T>
T load(const std::byte* at) {
  T value = 0;
  for (unsigned i = 0; i < sizeof(T); ++i) value |= static_cast<T>(std::to_integer<T>(at[i]) << (8 * i));
  return value;
}

// Hands out the scattered body piece by piece: from the caller's memory where a piece lies in one, else (at
// the seams of pieces that are not whole pages, as of disk writes) gathered into a buffer.
class PieceReader {
 public:
  explicit PieceReader(std::span<const ByteView> body) : body_(body) {}

  ByteView next(std::size_t bytes) {
    skip_empty();
    if (body_.front().size() - offset_ >= bytes) {
      const ByteView piece = body_.front().subspan(offset_, bytes);
      offset_ += bytes;
      return piece;
    }
    for (std::size_t gathered = 0; gathered < bytes; skip_empty()) {
      const std::size_t part = std::min(bytes - gathered, body_.front().size() - offset_);
      std::memcpy(buffer_.data() + gathered, body_.front().data() + offset_, part);
      gathered += part;
      offset_ += part;
    }
    return ByteView(buffer_).first(bytes);
  }

 private:
  void skip_empty() {
    while (!body_.empty() && offset_ == body_.front().size()) {
      body_ = body_.subspan(1);
      offset_ = 0;
    }
  }

  std::span<const ByteView> body_;
  std::size_t offset_ = 0;
  std::array<std::byte, kPieceBytes> buffer_;
};

}  // namespace

struct PieceCipher::AesState {
  crypto_aead_aes256gcm_state state;
};

void PieceCipher::FreeAesState::operator()(AesState* state) const { sodium_free(state); }

PieceCipher::PieceCipher(Cipher cipher, Secret key, std::uint64_t rekey_pieces)
    : cipher_(cipher), key_(std::move(key)), rekey_pieces_(rekey_pieces) {
  POLLUX_ASSERT(rekey_pieces_ > 0);
  expand_key();
}

PieceCipher::PieceCipher(PieceCipher&&) noexcept = default;
PieceCipher::~PieceCipher() = default;

void PieceCipher::expand_key() {
  if (cipher_ != Cipher::kAes256Gcm) return;
  POLLUX_ASSERT(crypto_aead_aes256gcm_is_available());
  if (!aes_) {
    // Wiped when freed; page-aligned from the end, and the state's size is a multiple of its alignment.
    static_assert(sizeof(AesState) % alignof(AesState) == 0);
    aes_.reset(static_cast<AesState*>(sodium_malloc(sizeof(AesState))));
    if (!aes_) throw std::bad_alloc();
  }
  crypto_aead_aes256gcm_beforenm(&aes_->state, key_.data());
}

void PieceCipher::next_nonce(unsigned char* nonce) {
  POLLUX_ASSERT(pieces_ < std::numeric_limits<std::uint64_t>::max());
  std::memset(nonce, 0, kNonceBytes);
  store(reinterpret_cast<std::byte*>(nonce) + 4, pieces_);
  ++pieces_;
}

void PieceCipher::seal(ByteView plaintext, ByteView additional, std::byte* sealed) {
  unsigned char nonce[kNonceBytes];
  next_nonce(nonce);
  if (cipher_ == Cipher::kAes256Gcm) {
    crypto_aead_aes256gcm_encrypt_afternm(as_unsigned(sealed), nullptr, as_unsigned(plaintext.data()),
                                          plaintext.size(), as_unsigned(additional.data()), additional.size(),
                                          nullptr, nonce, &aes_->state);
  } else {
    crypto_aead_chacha20poly1305_ietf_encrypt(as_unsigned(sealed), nullptr, as_unsigned(plaintext.data()),
                                              plaintext.size(), as_unsigned(additional.data()),
                                              additional.size(), nullptr, nonce, key_.data());
  }
}

bool PieceCipher::open(ByteView sealed, ByteView additional, std::byte* plaintext) {
  unsigned char nonce[kNonceBytes];
  next_nonce(nonce);
  if (cipher_ == Cipher::kAes256Gcm) {
    return crypto_aead_aes256gcm_decrypt_afternm(
               as_unsigned(plaintext), nullptr, nullptr, as_unsigned(sealed.data()), sealed.size(),
               as_unsigned(additional.data()), additional.size(), nonce, &aes_->state) == 0;
  }
  return crypto_aead_chacha20poly1305_ietf_decrypt(
             as_unsigned(plaintext), nullptr, nullptr, as_unsigned(sealed.data()), sealed.size(),
             as_unsigned(additional.data()), additional.size(), nonce, key_.data()) == 0;
}

void PieceCipher::rekey_when_due() {
  if (pieces_ - pieces_at_rekey_ < rekey_pieces_) return;
  static constexpr unsigned char kPurpose[] = "pollux rekey";
  Secret next;
  crypto_generichash(next.data(), kKeyBytes, kPurpose, sizeof kPurpose, key_.data(), kKeyBytes);
  key_ = std::move(next);
  pieces_at_rekey_ = pieces_;
  expand_key();
}

FrameLengths unverified_lengths(ByteView prefix) {
  POLLUX_ASSERT(prefix.size() == kPrefixBytes);
  return {load<std::uint32_t>(prefix.data()), load<std::uint32_t>(prefix.data() + 4)};
}

Sealer::Sealer(Cipher cipher, Secret key, std::uint64_t rekey_pieces)
    : cipher_(cipher, std::move(key), rekey_pieces) {}

void Sealer::seal(ByteView header, std::span<const ByteView> body, MutableByteView out) {
  std::size_t body_bytes = 0;
  for (const ByteView piece : body) body_bytes += piece.size();
  POLLUX_ASSERT(header.size() <= std::numeric_limits<std::uint32_t>::max());
  POLLUX_ASSERT(body_bytes <= std::numeric_limits<std::uint32_t>::max());
  const FrameLengths lengths{static_cast<std::uint32_t>(header.size()),
                             static_cast<std::uint32_t>(body_bytes)};
  POLLUX_ASSERT(out.size() == sealed_frame_bytes(lengths));

  cipher_.rekey_when_due();
  store(out.data(), lengths.header);
  store(out.data() + 4, lengths.body);
  store(out.data() + 8, frames_++);
  const ByteView prefix = out.first(kPrefixBytes);
  std::byte* to = out.data() + kPrefixBytes;
  cipher_.seal(header, prefix, to);
  to += sealed_header_bytes(header.size());

  PieceReader pieces(body);
  for (std::size_t left = body_bytes; left > 0;) {
    const std::size_t bytes = std::min(left, kPieceBytes);
    cipher_.seal(pieces.next(bytes), prefix, to);
    to += bytes + kTagBytes;
    left -= bytes;
  }
}

Opener::Opener(Cipher cipher, Secret key, FrameLimits limits, std::uint64_t rekey_pieces)
    : cipher_(cipher, std::move(key), rekey_pieces), limits_(limits) {}

void Opener::fail(const char* what) {
  failed_ = true;
  throw SessionError(what);
}

FrameLengths Opener::begin(ByteView prefix) {
  POLLUX_ASSERT(expecting_ == Expecting::kPrefix && !failed_);
  lengths_ = unverified_lengths(prefix);
  std::ranges::copy(prefix, prefix_.begin());
  if (lengths_.header > limits_.header_bytes || lengths_.body > limits_.body_bytes) {
    fail("a frame is longer than allowed");
  }
  if (load<std::uint64_t>(prefix.data() + 8) != frames_) fail("a frame is repeated or missing");
  ++frames_;
  cipher_.rekey_when_due();
  expecting_ = Expecting::kHeader;
  return lengths_;
}

ByteView Opener::open_header(MutableByteView sealed) {
  POLLUX_ASSERT(expecting_ == Expecting::kHeader && !failed_);
  POLLUX_ASSERT(sealed.size() == sealed_header_bytes(lengths_.header));
  if (!cipher_.open(sealed, prefix_, sealed.data())) fail("a frame is not authentic");
  expecting_ = Expecting::kBody;
  return sealed.first(lengths_.header);
}

void Opener::open_body(ByteView sealed, MutableByteView body) {
  POLLUX_ASSERT(expecting_ == Expecting::kBody && !failed_);
  POLLUX_ASSERT(sealed.size() == sealed_body_bytes(lengths_.body) && body.size() == lengths_.body);
  while (!body.empty()) {
    const std::size_t bytes = std::min(body.size(), kPieceBytes);
    if (!cipher_.open(sealed.first(bytes + kTagBytes), prefix_, body.data()))
      fail("a frame is not authentic");
    sealed = sealed.subspan(bytes + kTagBytes);
    body = body.subspan(bytes);
  }
  expecting_ = Expecting::kPrefix;
}

}  // namespace pollux::protocol::session
