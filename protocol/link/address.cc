#include <fmt/format.h>

#include <charconv>

#include "protocol/link/link.h"

namespace pollux::protocol {

Address parse_address(const std::string& text) {
  const auto fail = [&](const char* why) {
    return UsageError(fmt::format("address '{}': {} (write HOST:PORT or [IPV6]:PORT)", text, why));
  };
  const std::size_t colon = text.rfind(':');
  if (colon == std::string::npos) throw fail("there is no port");
  std::string host = text.substr(0, colon);
  if (host.starts_with('[')) {
    if (!host.ends_with(']')) throw fail("']' is missing before the port");
    host = host.substr(1, host.size() - 2);
  } else if (host.find(':') != std::string::npos) {
    throw fail("an IPv6 address needs brackets");
  }
  if (host.empty()) throw fail("there is no host");
  std::uint16_t port = 0;
  const char* end = text.data() + text.size();
  const auto result = std::from_chars(text.data() + colon + 1, end, port);
  if (result.ec != std::errc{} || result.ptr != end) throw fail("the port is not a number up to 65535");
  return {host, port};
}

std::string to_string(const Address& address) {
  const bool v6 = address.host.find(':') != std::string::npos;
  return v6 ? fmt::format("[{}]:{}", address.host, address.port)
            : fmt::format("{}:{}", address.host, address.port);
}

}  // namespace pollux::protocol
