#include "protocol/arbiter/etcd_claims.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cstdlib>
#include <thread>

#include "base/fd.h"
#include "tests/unit/arbiter/base64.h"
#include "tests/unit/arbiter/etcd_server.h"
#include "tests/unit/arbiter/temporary_directory.h"

namespace pollux::protocol {
namespace {

using namespace std::chrono_literals;
using std::chrono::steady_clock;
using ::testing::HasSubstr;
using ::testing::Not;

constexpr VmId kVm{};
constexpr auto kPatience = 60s;

// An endpoint that is no etcd: answers every connection's first bytes with a text.
class FakeEndpoint {
 public:
  enum class Then { kClose, kHold };

  explicit FakeEndpoint(std::string answer, Then then = Then::kClose)
      : answer_(std::move(answer)), then_(then), listener_(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)) {
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t length = sizeof address;
    EXPECT_EQ(::bind(listener_.get(), reinterpret_cast<const sockaddr*>(&address), length), 0);
    EXPECT_EQ(::listen(listener_.get(), 16), 0);
    EXPECT_EQ(::getsockname(listener_.get(), reinterpret_cast<sockaddr*>(&address), &length), 0);
    port_ = ntohs(address.sin_port);
    thread_ = std::thread([this] { serve(); });
  }
  FakeEndpoint(const FakeEndpoint&) = delete;
  FakeEndpoint& operator=(const FakeEndpoint&) = delete;
  ~FakeEndpoint() {
    ::shutdown(listener_.get(), SHUT_RDWR);
    thread_.join();
  }

  [[nodiscard]] std::string url() const { return fmt::format("http://127.0.0.1:{}", port_); }

 private:
  void serve() {
    for (;;) {
      const Fd socket(::accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC));
      if (!socket) return;
      char request[16 << 10];
      if (::recv(socket.get(), request, sizeof request, 0) <= 0) continue;
      // A peer that has heard enough closes; the rest is not sent then.
      static_cast<void>(::send(socket.get(), answer_.data(), answer_.size(), MSG_NOSIGNAL));
      if (then_ == Then::kHold) {
        while (::recv(socket.get(), request, sizeof request, 0) > 0) {
        }
      }
    }
  }

  const std::string answer_;
  const Then then_;
  const Fd listener_;
  std::uint16_t port_ = 0;
  std::thread thread_;
};

std::string ok(const std::string& body) {
  return fmt::format("HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{}",
                     body.size(), body);
}

class EtcdClaims : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!EtcdServer::available()) GTEST_SKIP() << "there is no etcd in PATH (./run setup)";
  }
  const ReplicaId castor_ = ReplicaId::random();
  const ReplicaId pollux_ = ReplicaId::random();
};

TEST_F(EtcdClaims, ADeadServerIsUnreachableAndForgetsNothing) {
  EtcdServer server;
  ASSERT_TRUE(server.running());
  const auto arbiter = make_arbiter("etcd:" + server.url(), {.timeout = kPatience});
  EXPECT_EQ(arbiter->claim({kVm, {1}, castor_}), Verdict::kWon);
  server.kill();
  EXPECT_EQ(arbiter->claim({kVm, {1}, castor_}), Verdict::kUnreachable);
  EXPECT_EQ(arbiter->last_reason(), "etcd " + server.url() + ": Connection refused");
  server.restart();
  EXPECT_EQ(arbiter->claim({kVm, {1}, pollux_}), Verdict::kLost);
  EXPECT_EQ(arbiter->claim({kVm, {1}, castor_}), Verdict::kWon);
  EXPECT_EQ(arbiter->claim({kVm, {2}, pollux_}), Verdict::kWon);
}

TEST_F(EtcdClaims, AServerThatHangsIsUnreachableWithinTheTimeout) {
  const FakeEndpoint silent("", FakeEndpoint::Then::kHold);
  const auto arbiter = make_arbiter("etcd:" + silent.url(), {.timeout = 300ms});
  const auto start = steady_clock::now();
  EXPECT_EQ(arbiter->claim({kVm, {1}, castor_}), Verdict::kUnreachable);
  EXPECT_LT(steady_clock::now() - start, 5s);
  EXPECT_THAT(arbiter->last_reason(), HasSubstr(silent.url() + ": no answer "));
}

TEST_F(EtcdClaims, TheNextEndpointIsAskedWhenOneFails) {
  EtcdServer server;
  ASSERT_TRUE(server.running());
  const FakeEndpoint silent("", FakeEndpoint::Then::kHold);
  const FakeEndpoint garbage("garbage\r\n\r\n");
  const std::string dead = fmt::format("http://127.0.0.1:{}", free_port());
  const auto arbiter = make_arbiter(
      "etcd:" + dead + "," + garbage.url() + "," + silent.url() + "," + server.url(), {.timeout = 4s});
  EXPECT_EQ(arbiter->claim({kVm, {1}, castor_}), Verdict::kWon);
  EXPECT_EQ(arbiter->claim({kVm, {1}, pollux_}), Verdict::kLost);
}

TEST_F(EtcdClaims, HostNamesAreResolved) {
  EtcdServer server;
  ASSERT_TRUE(server.running());
  const auto arbiter =
      make_arbiter(fmt::format("etcd:http://localhost:{}", server.port()), {.timeout = kPatience});
  EXPECT_EQ(arbiter->claim({kVm, {1}, castor_}), Verdict::kWon) << arbiter->last_reason();
  const auto nowhere = make_arbiter("etcd:http://nowhere.invalid", {.timeout = kPatience});
  EXPECT_EQ(nowhere->claim({kVm, {1}, castor_}), Verdict::kUnreachable);
  EXPECT_THAT(nowhere->last_reason(), HasSubstr("etcd http://nowhere.invalid:2379: "));
}

TEST_F(EtcdClaims, ADamagedKeyIsNobodys) {
  EtcdServer server;
  ASSERT_TRUE(server.running());
  const std::string key = base64("/pollux/" + to_string(kVm) + "/" + term_digits({1}));
  const auto arbiter = make_arbiter("etcd:" + server.url(), {.timeout = kPatience});
  for (const std::string& value : {std::string(), std::string("castor"), to_string(castor_) + "\n"}) {
    EXPECT_THAT(server.post("/v3/kv/put", fmt::format(R"({{"key":"{}","value":"{}"}})", key, base64(value))),
                HasSubstr("200 OK"));
    EXPECT_EQ(arbiter->claim({kVm, {1}, castor_}), Verdict::kUnreachable);
    EXPECT_THAT(arbiter->last_reason(), HasSubstr("is damaged"));
  }
  EXPECT_EQ(arbiter->claim({kVm, {2}, castor_}), Verdict::kWon);
}

TEST_F(EtcdClaims, PrefixesAreApart) {
  EtcdServer server;
  ASSERT_TRUE(server.running());
  const auto one = make_arbiter("etcd:" + server.url(), {.timeout = kPatience, .etcd_prefix = "/one"});
  const auto two = make_arbiter("etcd:" + server.url(), {.timeout = kPatience, .etcd_prefix = "/two"});
  EXPECT_EQ(one->claim({kVm, {1}, castor_}), Verdict::kWon);
  EXPECT_EQ(two->claim({kVm, {2}, pollux_}), Verdict::kLost);
  EXPECT_EQ(two->claim({kVm, {1}, pollux_}), Verdict::kWon);
}

// ---- Hostile answers

struct Hostile {
  const char* name;
  std::string answer;
};

std::string ranges(const std::string& highest, const std::string& previous) {
  return ok(fmt::format(
      R"({{"header":{{}},"responses":[{{"response_range":{{{}}}}},{{"response_range":{{{}}}}}]}})", highest,
      previous));
}

std::string kvs(const std::string& key, const std::string& value) {
  return fmt::format(R"("kvs":[{{"key":"{}","value":"{}"}}])", key, value);
}

std::vector<Hostile> hostile_answers() {
  const std::string id = base64(std::string(32, 'a'));
  const std::string vm = "/pollux/" + to_string(kVm) + "/";
  const std::string key = base64(vm + term_digits({1}));
  return {
      {"Nothing", ""},
      {"NotHttp", "SSH-2.0-OpenSSH_9.2\r\n"},
      {"Binary", std::string("\0\xff\x16\x03\x01", 5) + std::string(1000, '\x80')},
      {"HalfHeader", "HTTP/1.1 200 OK\r\nContent-Le"},
      {"HalfBody", "HTTP/1.1 200 OK\r\nContent-Length: 400\r\n\r\n{\"header\":{},\"succeeded\":true"},
      {"EndlessHeader", "HTTP/1.1 200 OK\r\nX: " + std::string(1 << 20, 'x')},
      {"ManyHeaders",
       [] {
         std::string text = "HTTP/1.1 200 OK\r\n";
         for (int i = 0; i < 100'000; ++i) text += "X: y\r\n";
         return text;
       }()},
      {"HugeLength", "HTTP/1.1 200 OK\r\nContent-Length: 18446744073709551615\r\n\r\n{"},
      {"LargeBody", ok(R"({"header":{},"x":")" + std::string(1 << 20, 'x') + "\"}")},
      {"LargeChunks",
       "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n100000\r\n" + std::string(1 << 20, ' ')},
      {"NegativeLength", "HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n{}"},
      {"BadChunk", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n0\r\n\r\n"},
      {"Redirect", "HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n"},
      {"ServerError", "HTTP/1.1 500 Oops\r\nContent-Length: 11\r\n\r\na\nb\r\nc\x1b[31m"},
      {"ErrorWithMessage", "HTTP/1.1 503 X\r\nContent-Length: 27\r\n\r\n{\"message\":\"no leader\\nnow\"}"},
      {"NoJson", ok("<html></html>")},
      {"HalfJson", ok(R"({"header":{},"succeeded":tr)")},
      {"DeepJson", ok(std::string(30'000, '['))},
      {"DeepObjects",
       [] {
         std::string text;
         for (int i = 0; i < 10'000; ++i) text += "{\"a\":";
         return ok(text);
       }()},
      {"BadUtf8", ok("{\"header\":\"\xff\xfe\"}")},
      {"Null", ok("null")},
      {"Array", ok("[]")},
      {"Number", ok("1e999")},
      {"EmptyObject", ok("{}")},
      {"HeaderOnly", ok(R"({"header":{}})")},
      {"HeaderNoObject", ok(R"({"header":true,"succeeded":true,"responses":[{"response_put":{}}]})")},
      {"SucceededOnly", ok(R"({"header":{},"succeeded":true})")},
      {"SucceededNoBool", ok(R"({"header":{},"succeeded":"true","responses":[{"response_put":{}}]})")},
      {"SucceededByRange", ok(R"({"header":{},"succeeded":true,"responses":[{"response_range":{}}]})")},
      {"ResponsesNoArray", ok(R"({"header":{},"responses":{}})")},
      {"ResponsesOfNumbers", ok(R"({"header":{},"responses":[1,2]})")},
      {"ResponsesOfPuts", ok(R"({"header":{},"responses":[{"response_put":{}},{"response_put":{}}]})")},
      {"TooManyResponses", ok(R"({"header":{},"responses":[{},{},{}]})")},
      {"KvsNoArray", ranges(R"("kvs":7)", "")},
      {"KvsOfNull", ranges(R"("kvs":[null])", "")},
      {"KvsWithoutKey", ranges(R"("kvs":[{}])", "")},
      {"TwoKvs", ranges(R"("kvs":[{},{}])", "")},
      {"KeyNoString", ranges(R"("kvs":[{"key":{}}])", "")},
      {"KeyNoBase64", ranges(kvs("!!!", id), "")},
      {"ValueNoBase64", ranges(kvs(key, "="), "")},
      {"OtherKey", ranges(kvs(base64("/etc/passwd"), id), "")},
      {"OtherVm", ranges(kvs(base64("/pollux/" + std::string(32, 'f') + "/" + term_digits({1})), id), "")},
      {"LowerTerm", ranges(kvs(base64(vm + term_digits({0})), id), "")},
      {"TermTooLarge", ranges(kvs(base64(vm + std::string(20, '9')), id), "")},
      {"TermWithoutZeros", ranges(kvs(base64(vm + "1"), id), "")},
      {"EmptyTerm", ranges(kvs(base64(vm), id), "")},
      {"NoReplica", ranges(kvs(key, base64("nobody")), "")},
      {"FailedWithoutReason", ranges("", "")},
  };
}

class HostileAnswer : public ::testing::TestWithParam<Hostile> {};

INSTANTIATE_TEST_SUITE_P(Etcd, HostileAnswer, ::testing::ValuesIn(hostile_answers()),
                         [](const auto& answer) { return std::string(answer.param.name); });

TEST_P(HostileAnswer, IsUnreachableWithAReason) {
  const FakeEndpoint endpoint(GetParam().answer);
  const auto arbiter = make_arbiter("etcd:" + endpoint.url(), {.timeout = kPatience});
  EXPECT_EQ(arbiter->claim({kVm, {1}, ReplicaId::random()}), Verdict::kUnreachable);
  const std::string reason = arbiter->last_reason();
  EXPECT_THAT(reason, HasSubstr("etcd http://127.0.0.1:"));
  EXPECT_LT(reason.size(), 400U);
  for (const char c : reason) EXPECT_TRUE(c >= ' ' && c <= '~') << reason;
}

// An answer of each kind cut at every byte, and with every byte changed.
TEST(HostileAnswers, NoCutOrChangedAnswerCrashes) {
  const std::string key = base64("/pollux/" + to_string(kVm) + "/" + term_digits({1}));
  const std::string whole = ranges(kvs(key, base64(std::string(32, 'a'))), "");
  for (std::size_t i = 0; i < whole.size(); ++i) {
    std::string changed = whole;
    changed[i] = static_cast<char>(changed[i] ^ 0x15);
    const FakeEndpoint cut(whole.substr(0, i));
    EXPECT_EQ(make_arbiter("etcd:" + cut.url(), {.timeout = kPatience})->claim({kVm, {1}, ReplicaId::random()}),
              Verdict::kUnreachable)
        << i;
    const FakeEndpoint strange(changed);
    EXPECT_NE(
        make_arbiter("etcd:" + strange.url(), {.timeout = kPatience})->claim({kVm, {1}, ReplicaId::random()}),
        Verdict::kWon)
        << i;
  }
}

TEST(HostileAnswers, NoTokenMayBreakARequest) {
  const TemporaryDirectory directory;
  directory.write("password", "secret\n");
  ASSERT_EQ(::chmod((directory / "password").c_str(), 0600), 0);
  const ArbiterOptions options{
      .timeout = kPatience, .etcd_user = "pollux", .etcd_password_file = directory / "password"};
  for (const std::string& token : {std::string(R"("")"), std::string(R"("a\r\nX: y")"), std::string("7"),
                                   "\"" + std::string(5000, 'a') + "\""}) {
    const FakeEndpoint endpoint(ok(R"({"header":{},"token":)" + token + "}"));
    const auto arbiter = make_arbiter("etcd:" + endpoint.url(), options);
    EXPECT_EQ(arbiter->claim({kVm, {1}, ReplicaId::random()}), Verdict::kUnreachable);
    EXPECT_THAT(arbiter->last_reason(), HasSubstr("token"));
  }
}

// ---- TLS and users

// Runs an openssl command in a directory.
void openssl(const TemporaryDirectory& directory, const std::string& arguments) {
  const std::string command = "cd '" + directory.path() + "' && openssl " + arguments + " >>log 2>&1";
  ASSERT_EQ(std::system(command.c_str()), 0) << command;
}

// An authority, a server of 127.0.0.1 and a client; and another authority that signed none of them.
void make_certificates(const TemporaryDirectory& directory) {
  const std::string new_key = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes ";
  directory.write("server.ext", "subjectAltName=IP:127.0.0.1\n");
  directory.write("client.ext", "extendedKeyUsage=clientAuth\n");
  for (const std::string name : {"ca", "other-ca"}) {
    openssl(directory, "req -x509 " + new_key + "-keyout " + name + ".key -out " + name +
                           ".pem -days 2 -subj /CN=" + name);
  }
  for (const std::string name : {"server", "client"}) {
    openssl(directory, "req " + new_key + "-keyout " + name + ".key -out " + name + ".csr -subj /CN=" + name);
    openssl(directory, "x509 -req -in " + name +
                           ".csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile " + name +
                           ".ext -out " + name + ".pem");
  }
}

TEST_F(EtcdClaims, TlsProvesBothEnds) {
  if (std::system("command -v openssl >/dev/null") != 0) GTEST_SKIP() << "there is no openssl command";
  const TemporaryDirectory files;
  make_certificates(files);
  EtcdServer server({"--cert-file=" + files / "server.pem", "--key-file=" + files / "server.key",
                     "--client-cert-auth", "--trusted-ca-file=" + files / "ca.pem"});
  ASSERT_TRUE(server.running());
  const std::string spec = "etcd:" + server.url();
  const ArbiterOptions good{.timeout = kPatience,
                            .etcd_ca_file = files / "ca.pem",
                            .etcd_certificate_file = files / "client.pem",
                            .etcd_key_file = files / "client.key"};
  const auto arbiter = make_arbiter(spec, good);
  EXPECT_EQ(arbiter->claim({kVm, {1}, castor_}), Verdict::kWon) << arbiter->last_reason();
  EXPECT_EQ(arbiter->claim({kVm, {1}, pollux_}), Verdict::kLost) << arbiter->last_reason();

  const auto refused = [&](const std::string& where, const ArbiterOptions& options) {
    const auto stranger = make_arbiter(where, options);
    EXPECT_EQ(stranger->claim({kVm, {2}, pollux_}), Verdict::kUnreachable);
    return stranger->last_reason();
  };
  ArbiterOptions options = good;
  options.etcd_ca_file = files / "other-ca.pem";
  EXPECT_THAT(refused(spec, options), HasSubstr("TLS certificate: "));
  options.etcd_ca_file.clear();  // the system's authorities do not know it either
  EXPECT_THAT(refused(spec, options), HasSubstr("TLS certificate: "));
  // The certificate is for 127.0.0.1, not for this name of it.
  EXPECT_THAT(refused(fmt::format("etcd:https://localhost:{}", server.port()), good), HasSubstr("TLS "));
  options = good;
  options.etcd_certificate_file.clear();
  options.etcd_key_file.clear();
  EXPECT_THAT(refused(spec, options), HasSubstr("etcd https://127.0.0.1:"));
  EXPECT_THAT(refused(fmt::format("etcd:http://127.0.0.1:{}", server.port()), {.timeout = kPatience}),
              HasSubstr("etcd http://127.0.0.1:"));
  EXPECT_EQ(arbiter->claim({kVm, {2}, castor_}), Verdict::kWon);
}

TEST_F(EtcdClaims, UsersNeedTheirPassword) {
  EtcdServer server;
  ASSERT_TRUE(server.running());
  const std::string range =
      fmt::format(R"("key":"{}","range_end":"{}")", base64("/pollux/"), base64("/pollux0"));
  for (const auto& [target, body] : std::vector<std::pair<std::string, std::string>>{
           {"user/add", R"({"name":"root","password":"r"})"},
           {"user/grant", R"({"user":"root","role":"root"})"},
           {"role/add", R"({"name":"replica"})"},
           {"role/grant", R"({"name":"replica","perm":{"permType":"READWRITE",)" + range + "}}"},
           {"user/add", R"({"name":"pollux","password":"se\"cret"})"},
           {"user/grant", R"({"user":"pollux","role":"replica"})"},
           {"enable", "{}"}}) {
    EXPECT_THAT(server.post("/v3/auth/" + target, body), HasSubstr("200 OK")) << target;
  }
  const TemporaryDirectory files;
  files.write("right", "se\"cret\n");
  files.write("wrong", "guess\n");
  for (const char* name : {"right", "wrong"}) ASSERT_EQ(::chmod((files / name).c_str(), 0600), 0);
  const std::string spec = "etcd:" + server.url();
  ArbiterOptions options{.timeout = kPatience, .etcd_user = "pollux", .etcd_password_file = files / "right"};
  const auto arbiter = make_arbiter(spec, options);
  EXPECT_EQ(arbiter->claim({kVm, {1}, castor_}), Verdict::kWon) << arbiter->last_reason();
  server.restart();  // which knows no tokens of before
  EXPECT_EQ(arbiter->claim({kVm, {1}, pollux_}), Verdict::kLost) << arbiter->last_reason();

  options.etcd_password_file = files / "wrong";
  const auto guesser = make_arbiter(spec, options);
  EXPECT_EQ(guesser->claim({kVm, {2}, pollux_}), Verdict::kUnreachable);
  EXPECT_THAT(guesser->last_reason(), HasSubstr("authentication failed"));
  const auto nobody = make_arbiter(spec, {.timeout = kPatience});
  EXPECT_EQ(nobody->claim({kVm, {2}, pollux_}), Verdict::kUnreachable);
  EXPECT_THAT(nobody->last_reason(), HasSubstr("user name is empty"));
  options.etcd_password_file = files / "right";
  options.etcd_prefix = "/elsewhere";
  const auto outside = make_arbiter(spec, options);
  EXPECT_EQ(outside->claim({kVm, {1}, pollux_}), Verdict::kUnreachable);
  EXPECT_THAT(outside->last_reason(), HasSubstr("permission denied"));
}

}  // namespace
}  // namespace pollux::protocol
