// A NIC whose wire is one end of a socket pair of datagrams: each is a frame.
#pragma once

#include <sys/socket.h>

#include <optional>

#include "base/fd.h"
#include "vmm/net/tap.h"

namespace pollux::testing {

class SocketNic final : public vmm::Nic {
 public:
  explicit SocketNic(int fd) : fd_(fd) {}
  [[nodiscard]] int poll_fd() const override { return fd_.get(); }
  [[nodiscard]] std::optional<Bytes> receive() override {
    Bytes frame(vmm::kMaxFrame);
    const auto got = ::recv(fd_.get(), frame.data(), frame.size(), MSG_DONTWAIT);
    if (got <= 0) return std::nullopt;
    frame.resize(static_cast<std::size_t>(got));
    return frame;
  }
  void send(ByteView frame) override { (void)::send(fd_.get(), frame.data(), frame.size(), MSG_DONTWAIT | MSG_NOSIGNAL); }

 private:
  Fd fd_;
};

}  // namespace pollux::testing
