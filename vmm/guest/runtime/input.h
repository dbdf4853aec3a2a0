// What somebody types: the input of the virtio console (virtio 1.2, 5.3). Output goes over the epoch device, see
// console.h.
#pragma once

#include <cstdint>

#include "vmm/guest/runtime/virtio.h"

namespace pollux::guest {

class ConsoleInput {
 public:
  ConsoleInput();

  // The next byte typed; none: false. Costs no exit.
  [[nodiscard]] bool read(std::uint8_t& byte);

 private:
  static constexpr std::uint16_t kBuffers = 8;
  static constexpr std::uint32_t kBufferBytes = 256;

  VirtioDevice device_;
  Virtqueue receive_;
  std::uint8_t* buffers_;
  std::uint16_t buffer_ = 0;  // that is being read
  std::uint32_t at_ = 0, end_ = 0;
};

}  // namespace pollux::guest
