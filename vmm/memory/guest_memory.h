// Guest RAM and the only way by which the VMM touches it.
//
// Layout (as QEMU's q35 and Firecracker have it): RAM from 0 up to the 32-bit hole at 3 GiB, which is left to
// devices, the APICs and the BIOS area; the rest from 4 GiB up.
//
// Every address and length comes from a hostile guest and is checked here. A write marks its pages dirty.
// Thread safety: the mapping never changes; concurrent accesses are the caller's matter, as on real hardware.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "base/bytes.h"
#include "base/error.h"
#include "vmm/memory/address.h"
#include "vmm/memory/dirty_set.h"

namespace pollux::vmm {

inline constexpr GuestAddress kHoleStart{0xC000'0000};   // 3 GiB
inline constexpr GuestAddress kHoleEnd{0x1'0000'0000};   // 4 GiB

// The host does not give so much of it.
class GuestMemoryError : public Error {
 public:
  using Error::Error;
};

class GuestMemory {
 public:
  struct Region {
    GuestAddress start;
    MutableByteView bytes;  // host mapping, a multiple of kPageSize
  };

  // Maps `bytes` (a positive multiple of kPageSize) of zeroed RAM. Throws GuestMemoryError when the host refuses.
  explicit GuestMemory(std::uint64_t bytes);
  ~GuestMemory();
  GuestMemory(const GuestMemory&) = delete;
  GuestMemory& operator=(const GuestMemory&) = delete;

  [[nodiscard]] std::uint64_t size() const { return size_; }
  [[nodiscard]] std::span<const Region> regions() const { return regions_; }
  // One past the highest frame.
  [[nodiscard]] Gfn end_gfn() const;
  [[nodiscard]] bool contains(Gfn gfn) const;
  // Every frame of RAM, ascending.
  [[nodiscard]] std::vector<Gfn> all_gfns() const;

  // The host's view of [address, address+length), or nothing when any of it is not RAM. Never spans regions.
  [[nodiscard]] std::optional<ByteView> view(GuestAddress address, std::uint64_t length) const;
  // The same for writing: its pages are marked dirty at once, so the caller writes before the machine can pause
  // (that is, holding its device's lock).
  [[nodiscard]] std::optional<MutableByteView> writable_view(GuestAddress address, std::uint64_t length);

  // Copies; false (and nothing is touched) when the range is not wholly RAM.
  [[nodiscard]] bool read(GuestAddress address, MutableByteView into) const;
  [[nodiscard]] bool write(GuestAddress address, ByteView from);

  // One whole page; the frame must be RAM.
  [[nodiscard]] std::span<const std::byte, kPageSize> page(Gfn gfn) const;
  [[nodiscard]] std::span<std::byte, kPageSize> writable_page(Gfn gfn);

  DirtySet& dirty() { return dirty_; }

 private:
  [[nodiscard]] std::byte* host_address(GuestAddress address, std::uint64_t length) const;
  void mark_dirty(GuestAddress address, std::uint64_t length);

  std::uint64_t size_;
  std::byte* mapping_ = nullptr;
  std::vector<Region> regions_;
  DirtySet dirty_;
};

}  // namespace pollux::vmm
