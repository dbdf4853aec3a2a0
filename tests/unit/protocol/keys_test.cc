#include "protocol/session/keys.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <filesystem>
#include <fstream>

namespace pollux::protocol::session {
namespace {

using ::testing::HasSubstr;

class KeyFiles : public ::testing::Test {
 protected:
  KeyFiles() {
    std::string name = (std::filesystem::temp_directory_path() / "pollux-keys-XXXXXX").string();
    EXPECT_NE(::mkdtemp(name.data()), nullptr);
    directory_ = name;
  }
  ~KeyFiles() override { std::filesystem::remove_all(directory_); }

  [[nodiscard]] std::string path(const std::string& name) const { return (directory_ / name).string(); }
  std::string write(const std::string& name, const std::string& text) const {
    std::ofstream(path(name)) << text;
    std::filesystem::permissions(path(name), std::filesystem::perms(0600));
    return path(name);
  }

  static std::string message_of(const std::function<void()>& action) {
    try {
      action();
    } catch (const UsageError& error) {
      return error.what();
    }
    return "no error";
  }
  static std::string secret_error(const std::string& path) {
    return message_of([&] { static_cast<void>(load_secret_key(path)); });
  }
  static std::string public_error(const std::string& path) {
    return message_of([&] { static_cast<void>(load_public_key(path)); });
  }

  std::filesystem::path directory_;
};

TEST_F(KeyFiles, APairIsWrittenAndLoaded) {
  const SecretKey key = SecretKey::generate();
  write_key_pair(path("k"), key);
  EXPECT_EQ(load_secret_key(path("k")).public_key(), key.public_key());
  EXPECT_EQ(load_public_key(path("k.pub")), key.public_key());
  struct stat status {};
  ASSERT_EQ(::stat(path("k").c_str(), &status), 0);
  EXPECT_EQ(status.st_mode & 0777, 0600u);
}

TEST_F(KeyFiles, KeysDiffer) {
  EXPECT_NE(SecretKey::generate().public_key(), SecretKey::generate().public_key());
}

TEST_F(KeyFiles, PublicKeyIsThatOfRfc7748) {
  // Section 6.1, Alice.
  const unsigned char secret[] = {0x77, 0x07, 0x6d, 0x0a, 0x73, 0x18, 0xa5, 0x7d, 0x3c, 0x16, 0xc1,
                                  0x72, 0x51, 0xb2, 0x66, 0x45, 0xdf, 0x4c, 0x2f, 0x87, 0xeb, 0xc0,
                                  0x99, 0x2a, 0xb1, 0x77, 0xfb, 0xa5, 0x1d, 0xb9, 0x2c, 0x2a};
  const SecretKey key(Secret(std::as_bytes(std::span(secret))));
  EXPECT_EQ(to_string(key.public_key()), "pollux-public-key-1 hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo=");
}

TEST_F(KeyFiles, NothingIsOverwritten) {
  const SecretKey key = SecretKey::generate();
  write_key_pair(path("k"), key);
  EXPECT_THAT(message_of([&] { write_key_pair(path("k"), SecretKey::generate()); }),
              HasSubstr("exists already"));
  std::filesystem::remove(path("k.pub"));
  EXPECT_THAT(message_of([&] { write_key_pair(path("k"), SecretKey::generate()); }),
              HasSubstr("exists already"));
  EXPECT_EQ(load_secret_key(path("k")).public_key(), key.public_key());
}

TEST_F(KeyFiles, TheOtherKindIsRefusedByName) {
  write_key_pair(path("k"), SecretKey::generate());
  std::filesystem::permissions(path("k.pub"), std::filesystem::perms(0600));
  EXPECT_THAT(secret_error(path("k.pub")), HasSubstr("holds a public key"));
  EXPECT_THAT(public_error(path("k")), HasSubstr("holds a secret key"));
}

TEST_F(KeyFiles, OpenPermissionsAreRefusedWithTheRemedy) {
  write_key_pair(path("k"), SecretKey::generate());
  std::filesystem::permissions(path("k"), std::filesystem::perms(0640));
  EXPECT_THAT(secret_error(path("k")), HasSubstr("chmod 600 " + path("k")));
}

TEST_F(KeyFiles, AnythingElseIsRefused) {
  EXPECT_THAT(secret_error(path("missing")), HasSubstr("No such file"));
  for (const std::string text :
       {"", "pollux-secret-key-1", "pollux-secret-key-1 ", "pollux-secret-key-1 AAAA",
        "pollux-secret-key-2 AAAA", "-----BEGIN PRIVATE KEY-----", "pollux-secret-key-1 !!!!"}) {
    EXPECT_THAT(secret_error(write("bad", text)), HasSubstr("is not a pollux-secret-key-1 key file")) << text;
  }
  const std::string good = to_string(SecretKey::generate().public_key());
  EXPECT_THAT(public_error(write("long", good + "AAAA")), HasSubstr("is not a"));
  EXPECT_THAT(public_error(write("two", good + "\nmore\n")), HasSubstr("is not a"));
  EXPECT_EQ(public_error(write("crlf", good + "\r\n")), "no error");
}

}  // namespace
}  // namespace pollux::protocol::session
