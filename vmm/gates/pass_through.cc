#include "vmm/gates/pass_through.h"

#include <sys/random.h>

#include "base/error.h"

namespace pollux::vmm {

std::chrono::nanoseconds PassThroughInput::wall_clock() {
  return std::chrono::system_clock::now().time_since_epoch();
}

void PassThroughInput::entropy(MutableByteView into) {
  while (!into.empty()) {
    const auto got = ::getrandom(into.data(), into.size(), 0);
    POLLUX_ASSERT(got > 0);  // without GRND_NONBLOCK it fails only for a bad address
    into = into.subspan(static_cast<std::size_t>(got));
  }
}

bool PassThroughOutput::transmit(NicIndex nic, ByteView frame) {
  backends_.nic(nic).send(frame);
  return true;
}

void PassThroughOutput::console(ConsoleIndex console, ByteView bytes) {
  backends_.console(console).write(bytes);
}

bool PassThroughOutput::read(DiskIndex disk, std::uint64_t offset, MutableByteView into) {
  return backends_.disk(disk).read(offset, into);
}

bool PassThroughOutput::write(DiskIndex disk, std::uint64_t offset, ByteView from) {
  return backends_.disk(disk).write(offset, from);
}

bool PassThroughOutput::discard(DiskIndex disk, std::uint64_t offset, std::uint64_t length) {
  return backends_.disk(disk).discard(offset, length);
}

bool PassThroughOutput::flush(DiskIndex disk) { return backends_.disk(disk).sync(); }

}  // namespace pollux::vmm
