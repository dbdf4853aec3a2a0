// The network of a campaign: a namespace of its own with a bridge, where the clients are, and a TAP for each replica.
// Needs no root, and nothing done here can touch the machine's real network.
#pragma once

#include <string>
#include <vector>

#include "base/fd.h"

namespace pollux::chaos {

// Moves this process, which must have one thread only, into a network namespace of its own; without the right to do so,
// into a user namespace first. Throws Error saying what is missing.
void enter_namespace();

// A bridge of that address (/24) and TAPs in it, all up, as loopback. They go with the namespace. Throws Error.
class Topology {
 public:
  Topology(const std::string& bridge_ip, const std::vector<std::string>& taps);

  // The kernel's number of an interface. Throws Error.
  [[nodiscard]] static int index_of(const std::string& interface);

 private:
  void add_bridge(const std::string& ip);
  void add_tap(const std::string& name);
  void bring_up(const std::string& interface);

  Fd control_;  // a socket, for the ioctls
};

}  // namespace pollux::chaos
