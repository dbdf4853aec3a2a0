#include "protocol/session/keys.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sodium.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <new>

#include "base/fd.h"

namespace pollux::protocol::session {
namespace {

constexpr std::string_view kSecretTag = "pollux-secret-key-1";
constexpr std::string_view kPublicTag = "pollux-public-key-1";
constexpr std::size_t kMaxKeyFileBytes = 256;
constexpr int kBase64 = sodium_base64_VARIANT_ORIGINAL;

const unsigned char* as_unsigned(ByteView bytes) {
  return reinterpret_cast<const unsigned char*>(bytes.data());
}

// A text that holds a secret for a moment.
struct WipedText {
  std::string text;
  WipedText() = default;
  WipedText(const WipedText&) = delete;
  WipedText& operator=(const WipedText&) = delete;
  ~WipedText() { sodium_memzero(text.data(), text.size()); }
};

void format_key(std::string_view tag, ByteView key, std::string& into) {
  into.reserve(kMaxKeyFileBytes);  // never reallocated: no copy of a secret stays behind
  into.assign(tag);
  into += ' ';
  const std::size_t start = into.size();
  into.resize(start + sodium_base64_ENCODED_LEN(kKeyBytes, kBase64));
  sodium_bin2base64(into.data() + start, into.size() - start, as_unsigned(key), key.size(), kBase64);
  into.pop_back();  // the terminating zero
}

UsageError file_error(const std::string& what, const std::string& path) {
  return UsageError(fmt::format("{} {}: {}", what, path, std::strerror(errno)));
}

void write_new_file(const std::string& path, const std::string& line, mode_t mode) {
  const Fd fd(::open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, mode));
  if (!fd && errno == EEXIST) {
    throw UsageError(fmt::format("{} exists already; remove it first if its key is of no more use", path));
  }
  if (!fd) throw file_error("cannot create key file", path);
  const bool written = ::write(fd.get(), line.data(), line.size()) == static_cast<ssize_t>(line.size()) &&
                       ::write(fd.get(), "\n", 1) == 1 && ::fsync(fd.get()) == 0;
  if (!written) {
    const UsageError error = file_error("cannot write key file", path);
    ::unlink(path.c_str());
    throw error;
  }
}

void refuse_open_permissions(const Fd& fd, const std::string& path) {
  struct stat status {};
  if (::fstat(fd.get(), &status) != 0) throw file_error("cannot read key file", path);
  if ((status.st_mode & (S_IRWXG | S_IRWXO)) != 0) {
    throw UsageError(fmt::format("secret key file {} can be read by others; run: chmod 600 {}", path, path));
  }
}

enum class Kind { kSecret, kPublic };

void read_line(const std::string& path, Kind kind, std::string& into) {
  const Fd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!fd) throw file_error("cannot read key file", path);
  if (kind == Kind::kSecret) refuse_open_permissions(fd, path);
  into.resize(kMaxKeyFileBytes);
  const ssize_t length = ::read(fd.get(), into.data(), into.size());
  if (length < 0) throw file_error("cannot read key file", path);
  into.resize(static_cast<std::size_t>(length));
  while (!into.empty() && (into.back() == '\n' || into.back() == '\r')) into.pop_back();
}

// The 32 bytes of "<tag> <base64>".
void parse_key(const std::string& path, const std::string& line, Kind kind, unsigned char* key) {
  const std::string_view wanted = kind == Kind::kSecret ? kSecretTag : kPublicTag;
  const std::string_view other = kind == Kind::kSecret ? kPublicTag : kSecretTag;
  if (line.starts_with(other)) {
    throw UsageError(fmt::format("{} holds a {} key, but the {} key is needed here ({})", path,
                                 kind == Kind::kSecret ? "public" : "secret",
                                 kind == Kind::kSecret ? "secret" : "public",
                                 kind == Kind::kSecret ? "the file without .pub" : "the file with .pub"));
  }
  const char* end = nullptr;
  std::size_t length = 0;
  const bool tagged = line.size() > wanted.size() && line.starts_with(wanted) && line[wanted.size()] == ' ';
  const std::size_t start = wanted.size() + 1;
  if (!tagged ||
      sodium_base642bin(key, kKeyBytes, line.data() + start, line.size() - start, nullptr, &length, &end,
                        kBase64) != 0 ||
      length != kKeyBytes || end != line.data() + line.size()) {
    throw UsageError(
        fmt::format("{} is not a {} key file; make a pair with: pollux keygen PATH", path, wanted));
  }
}

}  // namespace

void initialize_crypto() {
  static const int result = sodium_init();
  POLLUX_ASSERT(result >= 0);
}

Secret::Secret() {
  initialize_crypto();
  bytes_.reset(static_cast<unsigned char*>(sodium_malloc(kKeyBytes)));
  if (!bytes_) throw std::bad_alloc();
  std::memset(bytes_.get(), 0, kKeyBytes);  // sodium_malloc fills with garbage
}

Secret::Secret(ByteView bytes) : Secret() {
  POLLUX_ASSERT(bytes.size() == kKeyBytes);
  std::memcpy(bytes_.get(), bytes.data(), kKeyBytes);
}

ByteView Secret::view() const { return std::as_bytes(std::span(bytes_.get(), kKeyBytes)); }

void Secret::Wipe::operator()(unsigned char* bytes) const { sodium_free(bytes); }

SecretKey SecretKey::generate() {
  Secret secret;
  randombytes_buf(secret.data(), kKeyBytes);
  return SecretKey(std::move(secret));
}

SecretKey::SecretKey(Secret secret) : secret_(std::move(secret)) {
  const int result =
      crypto_scalarmult_base(reinterpret_cast<unsigned char*>(public_.bytes.data()), secret_.data());
  POLLUX_ASSERT(result == 0);
}

std::string to_string(const PublicKey& key) {
  std::string text;
  format_key(kPublicTag, key.bytes, text);
  return text;
}

void write_key_pair(const std::string& path, const SecretKey& key) {
  WipedText secret;
  format_key(kSecretTag, key.secret().view(), secret.text);
  const std::string public_path = path + ".pub";
  if (::access(public_path.c_str(), F_OK) == 0) {
    throw UsageError(
        fmt::format("{} exists already; remove it first if its key is of no more use", public_path));
  }
  write_new_file(path, secret.text, S_IRUSR | S_IWUSR);
  write_new_file(public_path, to_string(key.public_key()), S_IRUSR | S_IWUSR | S_IRGRP | S_IROTH);
}

SecretKey load_secret_key(const std::string& path) {
  initialize_crypto();
  WipedText line;
  read_line(path, Kind::kSecret, line.text);
  Secret secret;
  parse_key(path, line.text, Kind::kSecret, secret.data());
  return SecretKey(std::move(secret));
}

PublicKey load_public_key(const std::string& path) {
  initialize_crypto();
  std::string line;
  read_line(path, Kind::kPublic, line);
  PublicKey key;
  parse_key(path, line, Kind::kPublic, reinterpret_cast<unsigned char*>(key.bytes.data()));
  return key;
}

}  // namespace pollux::protocol::session
