// Long-lived X25519 keys of the hosts (RFC 7748), and the files `pollux keygen` writes them to.
//
// A key pair is two files of one line each: PATH, mode 0600, "pollux-secret-key-1 <base64>", and PATH.pub,
// "pollux-public-key-1 <base64>". Hosts know each other by pinned public keys; there are no certificates.
#pragma once

#include <array>
#include <cstddef>
#include <memory>
#include <ostream>
#include <string>
#include <string_view>

#include "base/bytes.h"
#include "base/error.h"

namespace pollux::protocol::session {

inline constexpr std::size_t kKeyBytes = 32;

// 32 secret bytes in locked memory (where the host allows) between guard pages; wiped when they go.
class Secret {
 public:
  Secret();  // all zero
  explicit Secret(ByteView bytes);
  Secret(Secret&&) noexcept = default;
  Secret& operator=(Secret&&) noexcept = default;

  [[nodiscard]] const unsigned char* data() const { return bytes_.get(); }
  [[nodiscard]] unsigned char* data() { return bytes_.get(); }
  [[nodiscard]] ByteView view() const;

 private:
  struct Wipe {
    void operator()(unsigned char* bytes) const;
  };
  std::unique_ptr<unsigned char, Wipe> bytes_;
};

struct PublicKey {
  std::array<std::byte, kKeyBytes> bytes{};
  auto operator<=>(const PublicKey&) const = default;
};

class SecretKey {
 public:
  [[nodiscard]] static SecretKey generate();
  explicit SecretKey(Secret secret);

  [[nodiscard]] const Secret& secret() const { return secret_; }
  [[nodiscard]] const PublicKey& public_key() const { return public_; }

 private:
  Secret secret_;
  PublicKey public_;
};

// The content of a public key file without its line end.
[[nodiscard]] std::string to_string(const PublicKey& key);
inline std::ostream& operator<<(std::ostream& out, const PublicKey& key) { return out << to_string(key); }

// Writes a new pair to `path` and `path`.pub. Throws UsageError when either exists: keys are never
// overwritten.
void write_key_pair(const std::string& path, const SecretKey& key);

// Throw UsageError naming the file and what to do: not readable, another format, the other kind of key, and
// for secret keys permissions that let anyone but the owner read them.
[[nodiscard]] SecretKey load_secret_key(const std::string& path);
[[nodiscard]] PublicKey load_public_key(const std::string& path);

// libsodium needs one initialization per process; cheap to call again.
void initialize_crypto();

}  // namespace pollux::protocol::session
