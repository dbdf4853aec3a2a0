#include "chaos/topology.h"

// clang-format off: linux/if_tun.h needs net/if.h first
#include <net/if.h>
#include <linux/if_tun.h>
#include <linux/sockios.h>
// clang-format on
#include <arpa/inet.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <netinet/in.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "base/error.h"

namespace pollux::chaos {
namespace {

constexpr const char* kBridge = "pollux0";

void write_file(const char* path, const std::string& text) {
  const Fd file(::open(path, O_WRONLY | O_CLOEXEC));
  if (!file || ::write(file.get(), text.data(), text.size()) != static_cast<ssize_t>(text.size())) {
    throw errno_error("write", path);
  }
}

ifreq request_for(const std::string& interface) {
  ifreq request{};
  POLLUX_ASSERT(!interface.empty() && interface.size() < sizeof request.ifr_name);
  interface.copy(request.ifr_name, interface.size());
  return request;
}

}  // namespace

void enter_namespace() {
  if (::unshare(CLONE_NEWNET) == 0) return;  // as root, who stays who he is
  const uid_t uid = ::geteuid();
  const gid_t gid = ::getegid();
  if (::unshare(CLONE_NEWUSER | CLONE_NEWNET) != 0) {
    throw Error(fmt::format("make a user and network namespace: {}; set sysctl kernel.unprivileged_userns_clone=1, or be root",
                            std::strerror(errno)));
  }
  write_file("/proc/self/setgroups", "deny");
  write_file("/proc/self/uid_map", fmt::format("0 {} 1", uid));
  write_file("/proc/self/gid_map", fmt::format("0 {} 1", gid));
}

Topology::Topology(const std::string& bridge_ip, const std::vector<std::string>& taps)
    : control_(::socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0)) {
  if (!control_) throw errno_error("make", "a socket");
  bring_up("lo");
  add_bridge(bridge_ip);
  for (const std::string& tap : taps) add_tap(tap);
}

int Topology::index_of(const std::string& interface) {
  const unsigned index = ::if_nametoindex(interface.c_str());
  if (index == 0) throw errno_error("find interface", interface);
  return static_cast<int>(index);
}

void Topology::add_bridge(const std::string& ip) {
  if (::ioctl(control_.get(), SIOCBRADDBR, kBridge) != 0) throw errno_error("make bridge", kBridge);
  ifreq request = request_for(kBridge);
  auto* address = reinterpret_cast<sockaddr_in*>(&request.ifr_addr);
  address->sin_family = AF_INET;
  if (::inet_pton(AF_INET, ip.c_str(), &address->sin_addr) != 1) throw UsageError(ip + " is no IPv4 address");
  if (::ioctl(control_.get(), SIOCSIFADDR, &request) != 0) throw errno_error("set the address of", kBridge);
  address->sin_addr.s_addr = htonl(0xffff'ff00);
  if (::ioctl(control_.get(), SIOCSIFNETMASK, &request) != 0) throw errno_error("set the netmask of", kBridge);
  bring_up(kBridge);
}

void Topology::add_tap(const std::string& name) {
  const Fd tun(::open("/dev/net/tun", O_RDWR | O_CLOEXEC));
  if (!tun) throw errno_error("open", "/dev/net/tun");
  ifreq request = request_for(name);
  request.ifr_flags = IFF_TAP | IFF_NO_PI;
  if (::ioctl(tun.get(), TUNSETIFF, &request) != 0) throw errno_error("make TAP", name);
  if (::ioctl(tun.get(), TUNSETPERSIST, 1) != 0) throw errno_error("keep TAP", name);
  ifreq into = request_for(kBridge);
  into.ifr_ifindex = index_of(name);
  if (::ioctl(control_.get(), SIOCBRADDIF, &into) != 0) throw errno_error("put into the bridge TAP", name);
  bring_up(name);
}

void Topology::bring_up(const std::string& interface) {
  ifreq request = request_for(interface);
  if (::ioctl(control_.get(), SIOCGIFFLAGS, &request) != 0) throw errno_error("look at interface", interface);
  request.ifr_flags = static_cast<short>(request.ifr_flags | IFF_UP);
  if (::ioctl(control_.get(), SIOCSIFFLAGS, &request) != 0) throw errno_error("bring up interface", interface);
}

}  // namespace pollux::chaos
