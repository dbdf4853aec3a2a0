// The URL of an etcd endpoint.
#pragma once

#include <string>
#include <vector>

#include "protocol/link/link.h"

namespace pollux::protocol {

struct EtcdUrl {
  bool tls = false;
  Address address;
};

// "http://HOST[:PORT]" or "https://HOST[:PORT]", one or several with commas. Throws UsageError.
[[nodiscard]] std::vector<EtcdUrl> parse_etcd_urls(const std::string& text);
[[nodiscard]] std::string to_string(const EtcdUrl& url);

}  // namespace pollux::protocol
