#include "vmm/devices/virtio/virtio_console.h"

#include <spdlog/spdlog.h>

#include <algorithm>
#include <array>
#include <utility>

#include "base/error.h"

namespace pollux::vmm {

std::span<const std::uint16_t> VirtioConsole::queue_sizes() const {
  static constexpr std::array kSizes = {kQueueSize, kQueueSize};
  return kSizes;
}

void VirtioConsole::deliver(ByteView input) {
  transport().locked([&] {
    const std::size_t taken = std::min(input.size(), kMaxWaitingInput - input_.size());
    input_.insert(input_.end(), input.begin(), input.begin() + static_cast<std::ptrdiff_t>(taken));
    if (taken < input.size() && !std::exchange(drop_logged_, true)) {
      spdlog::warn("virtio console: the guest does not read, input is dropped");
    }
  });
  transport().notify(kReceiveQueue);
}

bool VirtioConsole::serve(QueueIndex index) {
  return index == kReceiveQueue ? serve_receive() : serve_transmit();
}

bool VirtioConsole::serve_receive() {
  Queue& queue = transport().queue(kReceiveQueue);
  bool more = true;
  for (unsigned i = 0; more && i < kRequestsPerServe; ++i) {
    std::optional<Chain> chain;
    if (!input_.empty()) chain = queue.pop();
    if (!chain) {
      more = false;
      break;
    }
    if (!chain->readable.empty()) throw DriverError("console input buffer that is not writable");
    const auto length =
        static_cast<std::ptrdiff_t>(std::min<std::uint64_t>(input_.size(), chain->writable_bytes));
    const Bytes bytes(input_.begin(), input_.begin() + length);
    copy_to_guest(transport().memory(), chain->writable, 0, bytes);
    input_.erase(input_.begin(), input_.begin() + length);
    queue.push_used(chain->head, static_cast<std::uint32_t>(length));
  }
  transport().signal(kReceiveQueue);
  return more;
}

bool VirtioConsole::serve_transmit() {
  Queue& queue = transport().queue(kTransmitQueue);
  bool more = true;
  for (unsigned i = 0; more && i < kRequestsPerServe; ++i) {
    const auto chain = queue.pop();
    if (!chain) {
      more = false;
      break;
    }
    if (!chain->writable.empty()) throw DriverError("console output request with a writable buffer");
    Bytes bytes(std::min<std::uint64_t>(chain->readable_bytes, kMaxOutputBytes));
    copy_from_guest(transport().memory(), chain->readable, 0, bytes);
    output_.console(kVirtioConsole, bytes);
    queue.push_used(chain->head, 0);
  }
  transport().signal(kTransmitQueue);
  return more;
}

void VirtioConsole::save(schema::VirtioDeviceState::Function::Builder state) const {
  auto input = state.initConsole().initInput(static_cast<unsigned>(input_.size()));
  std::transform(input_.begin(), input_.end(), input.begin(),
                 [](std::byte byte) { return std::to_integer<std::uint8_t>(byte); });
}

void VirtioConsole::restore(schema::VirtioDeviceState::Function::Reader state) {
  if (!state.isConsole()) throw Error("restore console: state of another device");
  const auto input = state.getConsole().getInput();
  if (input.size() > kMaxWaitingInput) throw Error("restore console: too much input");
  input_.clear();
  for (const std::uint8_t byte : input) input_.push_back(std::byte{byte});
}

}  // namespace pollux::vmm
