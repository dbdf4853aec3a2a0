// The record layer: one message as one authenticated, encrypted frame.
//
//     prefix   16 bytes in the clear: header length (u32), body length (u32), frame number (u64), little
//     endian header   sealed as one piece: ciphertext, 16-byte tag body     sealed as pieces of kPieceBytes
//     (the last may be shorter), each followed by its tag
//
// Each piece is sealed under its own nonce, the number of the piece in this direction since the session
// began, and with the prefix as additional data. So a frame that is changed, cut, repeated, left out or moved
// does not open. The prefix is only believed as far as its bounds, which are checked before any memory is
// taken for it.
//
// Why pieces of a page: the guest's dirty pages lie scattered, and one AEAD call takes one contiguous
// plaintext. Page-sized pieces go straight from guest memory into the send buffer, and into one contiguous
// buffer on the other side, for 0.4 % more bytes; gathering them first would cost a copy.
//
// After kRekeyPieces pieces the key is replaced by its hash, far below the limits of AES-GCM (RFC 8446, 5.5
// gives 2^24.5 records of 2^14 bytes for one key; here 2^22 pieces of 2^12).
//
// Not thread safe: one Sealer and one Opener per direction and thread.
#pragma once

#include <cstdint>
#include <memory>
#include <span>

#include "base/bytes.h"
#include "protocol/session/handshake.h"
#include "protocol/session/keys.h"
#include "protocol/session/session_error.h"

namespace pollux::protocol::session {

inline constexpr std::size_t kPrefixBytes = 16;
inline constexpr std::size_t kPieceBytes = kPageSize;
inline constexpr std::uint64_t kRekeyPieces = 1 << 22;

struct FrameLimits {
  std::uint32_t header_bytes = 0;
  std::uint32_t body_bytes = 0;
};

struct FrameLengths {
  std::uint32_t header = 0;
  std::uint32_t body = 0;
};

// Without the prefix.
[[nodiscard]] constexpr std::size_t sealed_header_bytes(std::size_t header) { return header + kTagBytes; }
[[nodiscard]] constexpr std::size_t sealed_body_bytes(std::size_t body) {
  return body + (body + kPieceBytes - 1) / kPieceBytes * kTagBytes;
}
[[nodiscard]] constexpr std::size_t sealed_frame_bytes(FrameLengths lengths) {
  return kPrefixBytes + sealed_header_bytes(lengths.header) + sealed_body_bytes(lengths.body);
}

// What a prefix says, before anything vouches for it: it may be any lengths.
[[nodiscard]] FrameLengths unverified_lengths(ByteView prefix);

// One direction's key, cipher state and nonce.
class PieceCipher {
 public:
  PieceCipher(Cipher cipher, Secret key, std::uint64_t rekey_pieces);
  PieceCipher(PieceCipher&&) noexcept;
  ~PieceCipher();

  // `sealed` is plaintext.size() + kTagBytes long.
  void seal(ByteView plaintext, ByteView additional, std::byte* sealed);
  // False: not authentic. `plaintext` is sealed.size() - kTagBytes long and may begin where `sealed` does.
  [[nodiscard]] bool open(ByteView sealed, ByteView additional, std::byte* plaintext);
  // Between frames.
  void rekey_when_due();

 private:
  struct AesState;
  struct FreeAesState {
    void operator()(AesState* state) const;
  };
  void expand_key();
  // The nonce of the next piece. A direction never sends 2^64 pieces (asserted).
  void next_nonce(unsigned char* nonce);

  Cipher cipher_;
  Secret key_;
  std::unique_ptr<AesState, FreeAesState> aes_;
  std::uint64_t rekey_pieces_;
  std::uint64_t pieces_ = 0;
  std::uint64_t pieces_at_rekey_ = 0;
};

class Sealer {
 public:
  Sealer(Cipher cipher, Secret key, std::uint64_t rekey_pieces = kRekeyPieces);
  // Seals a frame into `out`, which is sealed_frame_bytes() long. The body's pieces are read once.
  void seal(ByteView header, std::span<const ByteView> body, MutableByteView out);

 private:
  PieceCipher cipher_;
  std::uint64_t frames_ = 0;
};

// For each frame: begin(), open_header(), open_body(), in this order (asserted). Throws SessionError, after
// which nothing more can be opened.
class Opener {
 public:
  Opener(Cipher cipher, Secret key, FrameLimits limits, std::uint64_t rekey_pieces = kRekeyPieces);
  [[nodiscard]] FrameLengths begin(ByteView prefix);
  // In place; returns the plaintext's view.
  [[nodiscard]] ByteView open_header(MutableByteView sealed);
  // `body` has the length begin() returned.
  void open_body(ByteView sealed, MutableByteView body);

 private:
  enum class Expecting { kPrefix, kHeader, kBody };
  [[noreturn]] void fail(const char* what);

  PieceCipher cipher_;
  FrameLimits limits_;
  std::array<std::byte, kPrefixBytes> prefix_{};
  FrameLengths lengths_;
  std::uint64_t frames_ = 0;
  Expecting expecting_ = Expecting::kPrefix;
  bool failed_ = false;
};

}  // namespace pollux::protocol::session
