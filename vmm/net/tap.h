// The host's end of a guest NIC.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>

#include "base/bytes.h"
#include "base/fd.h"

namespace pollux::vmm {

using MacAddress = std::array<std::uint8_t, 6>;

// "52:54:00:12:34:56"; nothing when malformed, multicast or all zero.
std::optional<MacAddress> parse_mac(const std::string& text);
std::string to_string(const MacAddress& mac);

// Largest frame carried: no offloads are offered, so an MTU of 1500 plus Ethernet and VLAN headers, with room
// for a larger MTU set on the TAP.
inline constexpr std::size_t kMaxFrame = 9216;

class Nic {
 public:
  virtual ~Nic() = default;
  // Readable when a frame waits; -1 when frames never arrive by themselves.
  [[nodiscard]] virtual int poll_fd() const = 0;
  // The next waiting frame without blocking; nothing when there is none (or it was too long and dropped).
  [[nodiscard]] virtual std::optional<Bytes> receive() = 0;
  // Never blocks; a full queue drops the frame.
  virtual void send(ByteView frame) = 0;
};

class Tap final : public Nic {
 public:
  // Attaches to the TAP `name`. Throws UsageError naming it when there is none, or when refused.
  explicit Tap(const std::string& name);
  [[nodiscard]] int poll_fd() const override { return fd_.get(); }
  [[nodiscard]] std::optional<Bytes> receive() override;
  void send(ByteView frame) override;

 private:
  std::string name_;
  Fd fd_;
};

// A NIC connected to nothing (a machine under test, a backup without network).
class NullNic final : public Nic {
 public:
  [[nodiscard]] int poll_fd() const override { return -1; }
  [[nodiscard]] std::optional<Bytes> receive() override { return std::nullopt; }
  void send(ByteView) override {}
};

}  // namespace pollux::vmm
