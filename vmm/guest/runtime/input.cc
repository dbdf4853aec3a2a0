#include "vmm/guest/runtime/input.h"

#include "vmm/guest/runtime/guest.h"

namespace pollux::guest {

ConsoleInput::ConsoleInput()
    : device_(VirtioType::kConsole, 0, 0),
      receive_(device_, 0, kBuffers),
      buffers_(static_cast<std::uint8_t*>(allocate_pages(kBuffers * kBufferBytes))) {
  for (std::uint16_t i = 0; i < kBuffers; ++i) {
    receive_.describe(i, buffers_ + i * kBufferBytes, kBufferBytes, Virtqueue::kDeviceWrites);
    receive_.offer(i);
  }
  device_.start();
  receive_.announce();
}

bool ConsoleInput::read(std::uint8_t& byte) {
  if (at_ == end_) {
    Virtqueue::Used used{};
    if (!receive_.take(used)) return false;
    require(used.head < kBuffers && used.written > 0 && used.written <= kBufferBytes, "console typed into no buffer of ours");
    buffer_ = static_cast<std::uint16_t>(used.head);
    at_ = 0;
    end_ = used.written;
  }
  byte = buffers_[buffer_ * kBufferBytes + at_++];
  if (at_ == end_) {
    receive_.offer(buffer_);
    receive_.announce();
  }
  return true;
}

}  // namespace pollux::guest
