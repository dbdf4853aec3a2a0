#include "vmm/devices/virtio/virtio_entropy.h"

#include <algorithm>
#include <array>

#include "base/error.h"

namespace pollux::vmm {

std::span<const std::uint16_t> VirtioEntropy::queue_sizes() const {
  static constexpr std::array kSizes = {kQueueSize};
  return kSizes;
}

bool VirtioEntropy::serve(QueueIndex index) {
  Queue& queue = transport().queue(index);
  bool more = true;
  for (unsigned i = 0; more && i < kRequestsPerServe; ++i) {
    const auto chain = queue.pop();
    if (!chain) {
      more = false;
      break;
    }
    if (!chain->readable.empty()) throw DriverError("entropy buffer that is not writable");  // 5.4.6.1
    Bytes random(std::min<std::uint64_t>(chain->writable_bytes, kMaxRequestBytes));
    input_.entropy(random);
    copy_to_guest(transport().memory(), chain->writable, 0, random);
    queue.push_used(chain->head, static_cast<std::uint32_t>(random.size()));
  }
  transport().signal(index);
  return more;
}

void VirtioEntropy::save(schema::VirtioDeviceState::Function::Builder state) const { state.setEntropy(); }

void VirtioEntropy::restore(schema::VirtioDeviceState::Function::Reader state) {
  if (!state.isEntropy()) throw Error("restore entropy device: state of another device");
}

}  // namespace pollux::vmm
