#include "backup/suppressing_gate.h"

#include <algorithm>
#include <cstring>

#include "base/error.h"

namespace pollux::backup {

void SuppressingGate::apply() {
  for (const Held& held : held_) {
    vmm::Image& image = backends_.disk(held.disk);
    const bool done = held.data.empty() ? image.discard(held.offset, held.length) : image.write(held.offset, held.data);
    if (!done) throw Error("cannot write " + image.path());
  }
  held_.clear();
}

void SuppressingGate::check_reads() const {
  if (!unreadable_.empty()) throw Error("cannot read " + unreadable_);
}

void SuppressingGate::promote(vmm::OutputGate& gate) {
  POLLUX_ASSERT(held_.empty());
  promoted_to_ = &gate;
}

bool SuppressingGate::transmit(vmm::NicIndex nic, ByteView frame) {
  vmm::OutputGate* const gate = promoted_to_;
  return gate == nullptr || gate->transmit(nic, frame);
}

void SuppressingGate::console(vmm::ConsoleIndex console, ByteView bytes) {
  if (vmm::OutputGate* const gate = promoted_to_) gate->console(console, bytes);
}

bool SuppressingGate::read(vmm::DiskIndex disk, std::uint64_t offset, MutableByteView into) {
  if (vmm::OutputGate* const gate = promoted_to_) return gate->read(disk, offset, into);
  vmm::Image& image = backends_.disk(disk);
  if (!image.read(offset, into)) {
    if (unreadable_.empty()) unreadable_ = image.path();
    return false;
  }
  for (const Held& held : held_) {
    const std::uint64_t first = std::max(offset, held.offset);
    const std::uint64_t end = std::min(offset + into.size(), held.offset + held.length);
    if (held.disk != disk || first >= end) continue;
    std::byte* const at = into.data() + (first - offset);
    if (held.data.empty()) {
      std::memset(at, 0, end - first);
    } else {
      std::memcpy(at, held.data.data() + (first - held.offset), end - first);
    }
  }
  return true;
}

bool SuppressingGate::write(vmm::DiskIndex disk, std::uint64_t offset, ByteView from) {
  if (vmm::OutputGate* const gate = promoted_to_) return gate->write(disk, offset, from);
  held_.push_back({disk, offset, from.size(), Bytes(from.begin(), from.end())});
  return true;
}

bool SuppressingGate::discard(vmm::DiskIndex disk, std::uint64_t offset, std::uint64_t length) {
  if (vmm::OutputGate* const gate = promoted_to_) return gate->discard(disk, offset, length);
  held_.push_back({disk, offset, length, {}});
  return true;
}

// The images are made durable once, before the epoch is acknowledged.
bool SuppressingGate::flush(vmm::DiskIndex disk) {
  vmm::OutputGate* const gate = promoted_to_;
  return gate == nullptr || gate->flush(disk);
}

}  // namespace pollux::backup
