#include "protocol/arbiter/etcd_claims.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <sodium.h>
#include <spdlog/spdlog.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <boost/asio/awaitable.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/ssl.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <boost/beast/core.hpp>
#include <boost/beast/http.hpp>
#include <boost/json.hpp>
#include <cerrno>
#include <charconv>
#include <cstring>
#include <exception>
#include <optional>
#include <utility>

#include "base/fd.h"
#include "protocol/session/keys.h"

namespace pollux::protocol {
namespace {

namespace asio = boost::asio;
namespace beast = boost::beast;
namespace http = beast::http;
namespace json = boost::json;
using asio::use_awaitable;
using asio::ip::tcp;
using boost::system::system_error;

// Of one response. A claim's is below 1 KiB.
constexpr std::uint64_t kMaxBodyBytes = 64 << 10;
constexpr std::uint32_t kMaxHeaderBytes = 8 << 10;
constexpr std::size_t kMaxJsonDepth = 16;
constexpr std::size_t kMaxTokenBytes = 4096;
constexpr std::size_t kMaxPasswordBytes = 1024;
constexpr int kBase64 = sodium_base64_VARIANT_ORIGINAL;

// ---- Texts

std::string base64(const std::string& text) {
  std::string encoded(sodium_base64_ENCODED_LEN(text.size(), kBase64), '\0');
  sodium_bin2base64(encoded.data(), encoded.size(), reinterpret_cast<const unsigned char*>(text.data()),
                    text.size(), kBase64);
  encoded.pop_back();  // the terminating zero
  return encoded;
}

std::optional<std::string> from_base64(std::string_view encoded) {
  std::string text(encoded.size(), '\0');
  std::size_t length = 0;
  const char* end = nullptr;
  if (sodium_base642bin(reinterpret_cast<unsigned char*>(text.data()), text.size(), encoded.data(),
                        encoded.size(), nullptr, &length, &end, kBase64) != 0 ||
      end != encoded.data() + encoded.size()) {
    return std::nullopt;
  }
  text.resize(length);
  return text;
}

bool is_visible(std::string_view text) {
  return std::all_of(text.begin(), text.end(), [](char c) { return c > ' ' && c <= '~'; });
}

// ---- JSON: nothing about a stranger's document is taken for granted

class BadAnswer : public Error {
 public:
  explicit BadAnswer(const std::string& what) : Error("no answer of etcd's: " + what) {}
};

json::object parse_object(const std::string& text) {
  json::parse_options options;
  options.max_depth = kMaxJsonDepth;
  boost::system::error_code error;
  json::value document = json::parse(text, error, {}, options);
  if (error) throw BadAnswer("malformed JSON (" + error.message() + ")");
  if (!document.is_object()) throw BadAnswer("JSON, but not an object");
  return std::move(document.get_object());
}

const json::object& object_at(const json::object& parent, std::string_view name) {
  const json::value* value = parent.if_contains(name);
  if (value == nullptr || !value->is_object()) throw BadAnswer(fmt::format("no object '{}'", name));
  return value->get_object();
}

std::string_view string_at(const json::object& parent, std::string_view name) {
  const json::value* value = parent.if_contains(name);
  if (value == nullptr || !value->is_string()) throw BadAnswer(fmt::format("no string '{}'", name));
  return value->get_string();
}

// An array may be absent when it is empty, a bool when it is false (proto3's JSON mapping).
const json::array& array_at(const json::object& parent, std::string_view name) {
  static const json::array kNone;
  const json::value* value = parent.if_contains(name);
  if (value == nullptr) return kNone;
  if (!value->is_array()) throw BadAnswer(fmt::format("'{}' is no array", name));
  return value->get_array();
}

bool bool_at(const json::object& parent, std::string_view name) {
  const json::value* value = parent.if_contains(name);
  if (value == nullptr) return false;
  if (!value->is_bool()) throw BadAnswer(fmt::format("'{}' is no bool", name));
  return value->get_bool();
}

const json::object& element(const json::array& array, std::size_t index) {
  if (index >= array.size() || !array[index].is_object()) throw BadAnswer("a response is missing");
  return array[index].get_object();
}

struct KeyValue {
  std::string key;
  std::string value;
};

// What a range of at most one key found.
std::optional<KeyValue> found_by(const json::object& response) {
  const json::array& kvs = array_at(object_at(response, "response_range"), "kvs");
  if (kvs.empty()) return std::nullopt;
  if (kvs.size() != 1) throw BadAnswer("more keys than asked for");
  const json::object& kv = element(kvs, 0);
  const auto key = from_base64(string_at(kv, "key"));
  // An empty value is absent.
  const auto value = kv.contains("value") ? from_base64(string_at(kv, "value")) : std::string();
  if (!key || !value) throw BadAnswer("bad base64");
  return KeyValue{*key, *value};
}

// ---- The transaction

class Keys {
 public:
  Keys(const std::string& prefix, const VmId& vm) : vm_(prefix + "/" + to_string(vm) + "/") {}

  [[nodiscard]] std::string of(Term term) const { return vm_ + term_digits(term); }
  // The first key after all of the vm's.
  [[nodiscard]] std::string end() const {
    std::string end = vm_;
    ++end.back();
    return end;
  }
  [[nodiscard]] std::optional<Term> term_of(const std::string& key) const {
    std::uint64_t term = 0;
    if (!key.starts_with(vm_)) return std::nullopt;
    const char* digits = key.data() + vm_.size();
    const char* end = key.data() + key.size();
    const auto result = std::from_chars(digits, end, term);
    if (result.ec != std::errc{} || result.ptr != end || of({term}) != key) return std::nullopt;
    return Term{term};
  }

 private:
  const std::string vm_;
};

json::object range(const std::string& key) { return {{"request_range", json::object{{"key", base64(key)}}}}; }

std::string claim_transaction(const TermClaim& claim, const Keys& keys) {
  const std::string key = base64(keys.of(claim.term));
  const std::string end = base64(keys.end());
  const std::string previous = keys.of({claim.term.value - 1});
  json::array conditions{{{"key", key},
                          {"range_end", end},
                          {"target", "CREATE"},
                          {"result", "EQUAL"},
                          {"create_revision", "0"}}};
  if (claim.term.value > 1) {
    conditions.push_back(
        {{"key", base64(previous)}, {"target", "CREATE"}, {"result", "GREATER"}, {"create_revision", "0"}});
  }
  const json::object put{{"key", key}, {"value", base64(record_of(claim))}};
  const json::object highest{
      {"key", key}, {"range_end", end}, {"limit", "1"}, {"sort_order", "DESCEND"}, {"sort_target", "KEY"}};
  const json::object transaction{
      {"compare", conditions},
      {"success", json::array{json::object{{"request_put", put}}}},
      {"failure", json::array{json::object{{"request_range", highest}}, range(previous)}}};
  return json::serialize(transaction);
}

// What an answer to claim_transaction() says. Throws BadAnswer.
Decision read_answer(const TermClaim& claim, const Keys& keys, const json::object& answer) {
  static_cast<void>(object_at(answer, "header"));  // every answer has one; an empty object is none
  const json::array& responses = array_at(answer, "responses");
  if (bool_at(answer, "succeeded")) {
    if (responses.size() != 1) throw BadAnswer("a transaction of another shape");
    static_cast<void>(object_at(element(responses, 0), "response_put"));
    return Decision::won();
  }
  if (responses.size() != 2) throw BadAnswer("a transaction of another shape");
  if (const auto highest = found_by(element(responses, 0))) {
    const auto term = keys.term_of(highest->key);
    if (!term || *term < claim.term) throw BadAnswer("a key that was not asked for: " + quoted(highest->key));
    const auto record = parse_record(highest->value);
    if (record) return judge(claim, *term, *record);
    if (*term > claim.term) return lost_to_higher_term(*term);
    throw Error("key " + highest->key + " is damaged: it names no replica");
  }
  const bool gap = claim.term.value > 1 && !found_by(element(responses, 1));
  if (!gap) throw BadAnswer("the transaction failed without a reason");
  return lost_to_gap(claim);
}

// ---- HTTP

// One connection, plain or TLS.
template <typename Stream>
class Connection {
 public:
  Connection(Stream stream, std::string host) : stream_(std::move(stream)), host_(std::move(host)) {}

  // The document of a 200; throws Error for every other answer.
  asio::awaitable<json::object> post(const char* target, std::string body, const std::string& token) {
    http::request<http::string_body> request{http::verb::post, target, 11};
    request.set(http::field::host, host_);
    request.set(http::field::content_type, "application/json");
    if (!token.empty()) request.set(http::field::authorization, token);
    request.body() = std::move(body);
    request.prepare_payload();
    co_await http::async_write(stream_, request, use_awaitable);

    http::response_parser<http::string_body> parser;
    parser.body_limit(kMaxBodyBytes);
    parser.header_limit(kMaxHeaderBytes);
    co_await http::async_read(stream_, buffer_, parser, use_awaitable);
    const http::response<http::string_body> response = parser.release();
    if (response.result() != http::status::ok) throw refusal(response);
    co_return parse_object(response.body());
  }

 private:
  static Error refusal(const http::response<http::string_body>& response) {
    std::string why;
    try {
      why = quoted(string_at(parse_object(response.body()), "message"));
    } catch (const BadAnswer&) {
      why = quoted(response.body());
    }
    return Error(fmt::format("HTTP status {}: {}", response.result_int(), why));
  }

  Stream stream_;
  const std::string host_;
  // A little more than a message may have, because it is filled ahead.
  beast::flat_buffer buffer_{kMaxBodyBytes + 2 * std::size_t{kMaxHeaderBytes}};
};

asio::awaitable<beast::tcp_stream> connect(const Address& address) {
  const auto executor = co_await asio::this_coro::executor;
  beast::tcp_stream stream(executor);
  stream.expires_never();  // the whole exchange has a deadline
  boost::system::error_code no_literal;
  const auto literal = asio::ip::make_address(address.host, no_literal);
  if (!no_literal) {
    co_await stream.async_connect(tcp::endpoint(literal, address.port), use_awaitable);
  } else {
    tcp::resolver resolver(executor);
    const auto found =
        co_await resolver.async_resolve(address.host, std::to_string(address.port), use_awaitable);
    co_await stream.async_connect(found, use_awaitable);
  }
  co_return stream;
}

// Runs `work` to its end or until `deadline`, when it is destroyed where it stands.
template <typename T>
T run_until(asio::awaitable<T> work, TimePoint deadline) {
  std::optional<T> result;
  std::exception_ptr failure;
  asio::io_context context(1);
  asio::co_spawn(context, std::move(work), [&](std::exception_ptr thrown, T value) {
    failure = std::move(thrown);
    if (!failure) result = std::move(value);
  });
  context.run_until(deadline);
  if (failure) std::rethrow_exception(failure);
  if (!result) throw Error("no answer in time");
  return std::move(*result);
}

std::string describe(const std::exception& error) {
  const auto* failed = dynamic_cast<const system_error*>(&error);
  if (failed == nullptr) return error.what();
  const boost::system::error_code code = failed->code();
  if (code == http::error::end_of_stream || code == asio::error::eof ||
      code == http::error::partial_message || code == asio::ssl::error::stream_truncated) {
    return "closed the connection in the middle";
  }
  if (code == http::error::body_limit || code == http::error::header_limit ||
      code == http::error::buffer_overflow) {
    return "the answer is too long";
  }
  if (code.category() == make_error_code(http::error::bad_version).category()) {
    return "no answer of etcd's: malformed HTTP (" + code.message() + ")";
  }
  return code.message();
}

// ---- Credentials

UsageError file_error(const std::string& what, const std::string& path) {
  return UsageError(fmt::format("cannot read {} {}: {}", what, path, std::strerror(errno)));
}

std::string read_password(const std::string& path) {
  const Fd file(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!file) throw file_error("etcd password file", path);
  struct stat status {};
  if (::fstat(file.get(), &status) != 0) throw file_error("etcd password file", path);
  if ((status.st_mode & (S_IRWXG | S_IRWXO)) != 0) {
    throw UsageError(
        fmt::format("etcd password file {} can be read by others; run: chmod 600 {}", path, path));
  }
  std::string password(kMaxPasswordBytes, '\0');
  const ssize_t length = ::read(file.get(), password.data(), password.size());
  if (length < 0) throw file_error("etcd password file", path);
  password.resize(static_cast<std::size_t>(length));
  while (!password.empty() && (password.back() == '\n' || password.back() == '\r')) password.pop_back();
  if (password.empty() || password.find('\n') != std::string::npos) {
    throw UsageError(fmt::format("etcd password file {} must hold one line, the password", path));
  }
  return password;
}

// Files are read once: one that vanishes later stops no claim.
std::unique_ptr<asio::ssl::context> make_tls(const ArbiterOptions& options) {
  auto tls = std::make_unique<asio::ssl::context>(asio::ssl::context::tls_client);
  const auto load = [](const char* what, const std::string& path, auto&& read) {
    try {
      read(path);
    } catch (const system_error& error) {
      throw UsageError(fmt::format("cannot use etcd {} file {}: {}", what, path, error.code().message()));
    }
  };
  if (::SSL_CTX_set_min_proto_version(tls->native_handle(), TLS1_2_VERSION) != 1) throw Error("no TLS 1.2");
  tls->set_verify_mode(asio::ssl::verify_peer);
  if (options.etcd_ca_file.empty()) {
    tls->set_default_verify_paths();
  } else {
    load("CA", options.etcd_ca_file, [&](const std::string& path) { tls->load_verify_file(path); });
  }
  if (!options.etcd_certificate_file.empty()) {
    load("certificate", options.etcd_certificate_file,
         [&](const std::string& path) { tls->use_certificate_chain_file(path); });
    load("key", options.etcd_key_file,
         [&](const std::string& path) { tls->use_private_key_file(path, asio::ssl::context::pem); });
  }
  return tls;
}

void check_options(const std::vector<EtcdUrl>& urls, const ArbiterOptions& options) {
  const bool tls = std::any_of(urls.begin(), urls.end(), [](const EtcdUrl& url) { return url.tls; });
  const bool tls_options = !options.etcd_ca_file.empty() || !options.etcd_certificate_file.empty();
  if (tls_options && !tls) throw UsageError("etcd certificates are of use for https:// endpoints only");
  if (options.etcd_certificate_file.empty() != options.etcd_key_file.empty()) {
    throw UsageError("an etcd client certificate needs both files, the certificate's and the key's");
  }
  if (options.etcd_user.empty() != options.etcd_password_file.empty()) {
    throw UsageError("an etcd user needs a password file, and a password file a user");
  }
  const bool all_tls = std::all_of(urls.begin(), urls.end(), [](const EtcdUrl& url) { return url.tls; });
  if (!options.etcd_user.empty() && !all_tls) {
    spdlog::warn("the etcd password goes over http:// unencrypted");
  }
  if (options.etcd_prefix.ends_with('/') || !is_visible(options.etcd_prefix)) {
    throw UsageError(
        fmt::format("etcd prefix '{}' ends with a slash or has spaces", quoted(options.etcd_prefix)));
  }
}

// ---- The decider

class EtcdClaims final : public Decider {
 public:
  EtcdClaims(const std::vector<EtcdUrl>& urls, const ArbiterOptions& options)
      : urls_(urls), prefix_(options.etcd_prefix), user_(options.etcd_user) {
    check_options(urls, options);
    session::initialize_crypto();
    if (!user_.empty()) password_ = read_password(options.etcd_password_file);
    if (std::any_of(urls.begin(), urls.end(), [](const EtcdUrl& url) { return url.tls; })) {
      tls_ = make_tls(options);
    }
  }

  [[nodiscard]] Decision decide(const TermClaim& claim, TimePoint deadline) override {
    using std::chrono::steady_clock;
    // A little earlier than the caller stops waiting, so that it learns which endpoint failed and how.
    const TimePoint end = deadline - (deadline - steady_clock::now()) / 10;
    std::string reasons;
    for (std::size_t i = 0; i < urls_.size(); ++i) {
      const TimePoint now = steady_clock::now();
      const auto share = (end - now) / static_cast<int>(urls_.size() - i);
      try {
        return run_until(urls_[i].tls ? claim_by_tls(claim, urls_[i]) : claim_plainly(claim, urls_[i]),
                         now + share);
      } catch (const std::exception& error) {
        if (!reasons.empty()) reasons += "; ";
        reasons += fmt::format("etcd {}: {}", to_string(urls_[i]), describe(error));
      }
    }
    return Decision::unreachable(reasons);
  }

 private:
  asio::awaitable<Decision> claim_plainly(const TermClaim& claim, const EtcdUrl& url) const {
    Connection<beast::tcp_stream> connection(co_await connect(url.address), to_string(url.address));
    co_return co_await exchange(claim, connection);
  }

  asio::awaitable<Decision> claim_by_tls(const TermClaim& claim, const EtcdUrl& url) const {
    asio::ssl::stream<beast::tcp_stream> stream(co_await connect(url.address), *tls_);
    stream.set_verify_callback(asio::ssl::host_name_verification(url.address.host));
    boost::system::error_code no_literal;
    static_cast<void>(asio::ip::make_address(url.address.host, no_literal));
    if (no_literal) ::SSL_set_tlsext_host_name(stream.native_handle(), url.address.host.c_str());
    try {
      co_await stream.async_handshake(asio::ssl::stream_base::client, use_awaitable);
    } catch (const system_error& error) {
      const long result = ::SSL_get_verify_result(stream.native_handle());
      if (result == X509_V_OK) throw Error("TLS handshake: " + error.code().message());
      throw Error(std::string("TLS certificate: ") + ::X509_verify_cert_error_string(result));
    }
    Connection<asio::ssl::stream<beast::tcp_stream>> connection(std::move(stream), to_string(url.address));
    co_return co_await exchange(claim, connection);
  }

  template <typename Stream>
  asio::awaitable<Decision> exchange(const TermClaim& claim, Connection<Stream>& connection) const {
    const Keys keys(prefix_, claim.vm);
    std::string token;
    if (!user_.empty()) {
      const json::object login{{"name", user_}, {"password", password_}};
      const json::object answer =
          co_await connection.post("/v3/auth/authenticate", json::serialize(login), {});
      token = string_at(answer, "token");
      if (token.empty() || token.size() > kMaxTokenBytes || !is_visible(token))
        throw BadAnswer("a bad token");
    }
    const json::object answer = co_await connection.post("/v3/kv/txn", claim_transaction(claim, keys), token);
    co_return read_answer(claim, keys, answer);
  }

  const std::vector<EtcdUrl> urls_;
  const std::string prefix_;
  const std::string user_;
  std::string password_;
  std::unique_ptr<asio::ssl::context> tls_;
};

}  // namespace

std::shared_ptr<Decider> make_etcd_claims(const std::vector<EtcdUrl>& urls, const ArbiterOptions& options) {
  return std::make_shared<EtcdClaims>(urls, options);
}

}  // namespace pollux::protocol
