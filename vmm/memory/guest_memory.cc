#include "vmm/memory/guest_memory.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstring>
#include <string>

#include "base/error.h"

namespace pollux::vmm {
namespace {

Gfn end_of(std::uint64_t bytes) {
  const std::uint64_t end = bytes <= kHoleStart.value ? bytes : bytes - kHoleStart.value + kHoleEnd.value;
  return {end >> kPageShift};
}

}  // namespace

GuestMemory::GuestMemory(std::uint64_t bytes) : size_(bytes), dirty_(end_of(bytes)) {
  POLLUX_ASSERT(bytes > 0 && bytes % kPageSize == 0);
  void* mapping = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (mapping == MAP_FAILED) {
    throw GuestMemoryError(errno_error("map", std::to_string(bytes >> 20) + " MiB of guest memory").what());
  }
  ::madvise(mapping, bytes, MADV_DONTFORK);
  mapping_ = static_cast<std::byte*>(mapping);
  const std::uint64_t low = std::min(bytes, kHoleStart.value);
  regions_.push_back({GuestAddress{0}, MutableByteView(mapping_, low)});
  if (bytes > low) regions_.push_back({kHoleEnd, MutableByteView(mapping_ + low, bytes - low)});
}

GuestMemory::~GuestMemory() { ::munmap(mapping_, size_); }

Gfn GuestMemory::end_gfn() const { return end_of(size_); }

bool GuestMemory::contains(Gfn gfn) const {
  return gfn < end_gfn() && host_address(address_of(gfn), kPageSize) != nullptr;
}

std::vector<Gfn> GuestMemory::all_gfns() const {
  std::vector<Gfn> gfns;
  gfns.reserve(size_ >> kPageShift);
  for (const Region& region : regions_) {
    const Gfn first = region.start.gfn();
    for (std::uint64_t i = 0; i < region.bytes.size() >> kPageShift; ++i) gfns.push_back({first.value + i});
  }
  return gfns;
}

std::byte* GuestMemory::host_address(GuestAddress address, std::uint64_t length) const {
  for (const Region& region : regions_) {
    if (address < region.start) continue;
    const std::uint64_t offset = address.value - region.start.value;
    // Compared by subtraction: the guest may choose values whose sum wraps.
    if (offset <= region.bytes.size() && length <= region.bytes.size() - offset) {
      return region.bytes.data() + offset;
    }
  }
  return nullptr;
}

void GuestMemory::mark_dirty(GuestAddress address, std::uint64_t length) {
  if (length == 0) return;
  const std::uint64_t last = (address + (length - 1)).gfn().value;
  for (std::uint64_t gfn = address.gfn().value; gfn <= last; ++gfn) dirty_.add({gfn});
}

std::optional<ByteView> GuestMemory::view(GuestAddress address, std::uint64_t length) const {
  const std::byte* host = host_address(address, length);
  if (host == nullptr) return std::nullopt;
  return ByteView(host, length);
}

std::optional<MutableByteView> GuestMemory::writable_view(GuestAddress address, std::uint64_t length) {
  std::byte* host = host_address(address, length);
  if (host == nullptr) return std::nullopt;
  mark_dirty(address, length);
  return MutableByteView(host, length);
}

bool GuestMemory::read(GuestAddress address, MutableByteView into) const {
  const auto from = view(address, into.size());
  if (!from) return false;
  std::memcpy(into.data(), from->data(), into.size());
  return true;
}

bool GuestMemory::write(GuestAddress address, ByteView from) {
  const auto into = writable_view(address, from.size());
  if (!into) return false;
  std::memcpy(into->data(), from.data(), from.size());
  return true;
}

std::span<const std::byte, kPageSize> GuestMemory::page(Gfn gfn) const {
  const std::byte* host = contains(gfn) ? host_address(address_of(gfn), kPageSize) : nullptr;
  POLLUX_ASSERT(host != nullptr);
  return std::span<const std::byte, kPageSize>(host, kPageSize);
}

std::span<std::byte, kPageSize> GuestMemory::writable_page(Gfn gfn) {
  std::byte* host = contains(gfn) ? host_address(address_of(gfn), kPageSize) : nullptr;
  POLLUX_ASSERT(host != nullptr);
  dirty_.add(gfn);
  return std::span<std::byte, kPageSize>(host, kPageSize);
}

}  // namespace pollux::vmm
