#include "protocol/arbiter/etcd_url.h"

#include <fmt/format.h>

#include "protocol/arbiter/decider.h"

namespace pollux::protocol {
namespace {

constexpr std::size_t kMaxEndpoints = 16;
constexpr const char* kDefaultPort = ":2379";

EtcdUrl parse_url(const std::string& text) {
  const auto fail = [&](const std::string& why) {
    return UsageError(
        fmt::format("etcd URL '{}': {} (write http://HOST:PORT or https://HOST:PORT)", quoted(text), why));
  };
  EtcdUrl url;
  std::string rest;
  if (text.starts_with("http://")) {
    rest = text.substr(7);
  } else if (text.starts_with("https://")) {
    rest = text.substr(8);
    url.tls = true;
  } else {
    throw fail("it starts with neither http:// nor https://");
  }
  if (rest.ends_with('/')) rest.pop_back();
  for (const char c : rest) {
    if (c <= ' ' || c > '~') throw fail("there is a character that no URL has");
  }
  if (rest.find('@') != std::string::npos) throw fail("user and password are options of their own");
  if (rest.find_first_of("/?#") != std::string::npos) throw fail("there is more than host and port");
  const std::size_t after_v6 = rest.rfind(']');
  const bool has_port = rest.find(':', after_v6 == std::string::npos ? 0 : after_v6) != std::string::npos;
  try {
    url.address = parse_address(has_port ? rest : rest + kDefaultPort);
  } catch (const UsageError& error) {
    throw UsageError(fmt::format("etcd URL '{}': {}", text, error.what()));
  }
  if (url.address.port == 0) throw fail("port 0 is no port");
  return url;
}

}  // namespace

std::vector<EtcdUrl> parse_etcd_urls(const std::string& text) {
  std::vector<EtcdUrl> urls;
  std::size_t start = 0;
  for (;;) {
    const std::size_t comma = text.find(',', start);
    urls.push_back(parse_url(text.substr(start, comma == std::string::npos ? comma : comma - start)));
    if (urls.size() > kMaxEndpoints) throw UsageError(fmt::format("more than {} etcd URLs", kMaxEndpoints));
    if (comma == std::string::npos) return urls;
    start = comma + 1;
  }
}

std::string to_string(const EtcdUrl& url) {
  return (url.tls ? "https://" : "http://") + to_string(url.address);
}

}  // namespace pollux::protocol
