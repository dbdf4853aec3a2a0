#include "vmm/net/tap.h"

#include <fcntl.h>
#include <net/if.h>
#include <linux/if_tun.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstdio>
#include <cstring>

#include "base/error.h"

namespace pollux::vmm {
namespace {

constexpr std::size_t kMacText = 17;  // "52:54:00:12:34:56"

UsageError refused(const std::string& name, int error_number) {
  std::string what = "TAP " + name + ": " + std::strerror(error_number);
  if (error_number == EPERM)
    what += "; create it for this user: ip tuntap add dev " + name + " mode tap user USER";
  if (error_number == EBUSY) what += "; another process uses it: give each machine a TAP of its own";
  if (error_number == EINVAL)
    what += "; an interface of that name is not a TAP (or made with other flags): use another name";
  return UsageError(what);
}

}  // namespace

std::optional<MacAddress> parse_mac(const std::string& text) {
  if (text.size() != kMacText) return std::nullopt;
  MacAddress mac{};
  for (std::size_t i = 0; i < mac.size(); ++i) {
    const char* octet = text.data() + 3 * i;
    if (i > 0 && octet[-1] != ':') return std::nullopt;
    const auto [end, error] = std::from_chars(octet, octet + 2, mac[i], 16);
    if (error != std::errc{} || end != octet + 2) return std::nullopt;
  }
  const bool multicast = (mac[0] & 1) != 0;
  if (multicast || mac == MacAddress{}) return std::nullopt;
  return mac;
}

std::string to_string(const MacAddress& mac) {
  std::array<char, kMacText + 1> text{};
  std::snprintf(text.data(), text.size(), "%02x:%02x:%02x:%02x:%02x:%02x", mac[0], mac[1], mac[2], mac[3],
                mac[4], mac[5]);
  return text.data();
}

Tap::Tap(const std::string& name) : name_(name) {
  ifreq request{};
  if (name.empty() || name.size() >= sizeof request.ifr_name) {
    throw UsageError("TAP '" + name + "': a name has 1 to 15 characters");
  }
  fd_ = Fd(::open("/dev/net/tun", O_RDWR | O_NONBLOCK | O_CLOEXEC));
  if (!fd_) {
    throw UsageError("TAP " + name + ": open /dev/net/tun: " + std::strerror(errno) +
                     "; load the module (modprobe tun) or grant access to it");
  }
  // TUNSETIFF would create what does not exist: after a typing error a NIC that is connected to nothing.
  if (::if_nametoindex(name.c_str()) == 0) {
    throw UsageError("TAP " + name + ": no such interface; make it first (ip tuntap add " + name + " mode tap)");
  }
  std::memcpy(request.ifr_name, name.data(), name.size());
  request.ifr_flags = IFF_TAP | IFF_NO_PI;
  if (::ioctl(fd_.get(), TUNSETIFF, &request) != 0) throw refused(name, errno);
}

std::optional<Bytes> Tap::receive() {
  // One byte more than the limit: a longer frame is recognized and dropped rather than cut.
  std::array<std::byte, kMaxFrame + 1> buffer;
  const auto got = ::read(fd_.get(), buffer.data(), buffer.size());
  // EAGAIN: none; EIO and the like: the interface is down, and more frames may come once it is up.
  if (got <= 0 || static_cast<std::size_t>(got) > kMaxFrame) return std::nullopt;
  return Bytes(buffer.data(), buffer.data() + got);
}

void Tap::send(ByteView frame) {
  // Refused when the queue is full or the interface down: lost, as on a wire.
  [[maybe_unused]] const auto sent = ::write(fd_.get(), frame.data(), frame.size());
}

}  // namespace pollux::vmm
