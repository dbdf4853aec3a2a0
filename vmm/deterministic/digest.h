// What two machines in the same state have in common in few bytes: XXH3-128 of registers, devices and pages.
//
// It detects faults and divergence; it authenticates nothing.
#pragma once

#include <compare>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/bytes.h"
#include "vmm/memory/guest_memory.h"

namespace pollux::vmm {

struct Digest {
  std::uint64_t low = 0;
  std::uint64_t high = 0;
  bool operator==(const Digest&) const = default;
};
[[nodiscard]] Digest digest_of(ByteView bytes);
[[nodiscard]] std::string to_string(const Digest& digest);

// A page whose content an epoch changed, as it is at the epoch's end.
struct PageDigest {
  Gfn gfn;
  Digest content;
  bool operator==(const PageDigest&) const = default;
};

// The state at an epoch's end, after its inputs were delivered. As memory was alike before, the pages changed tell all
// of it.
struct EpochDigest {
  Digest registers;
  Digest devices;
  std::vector<PageDigest> pages;  // ascending
  bool operator==(const EpochDigest&) const = default;
  // All of it in one.
  [[nodiscard]] Digest combined() const;
};

// The pages that differ in them, ascending: also those that are in only one of them.
[[nodiscard]] std::vector<Gfn> differing_pages(const EpochDigest& expected, const EpochDigest& found);

// Nothing when they are equal; else in one line what differs in `found` from `expected`, by addresses.
[[nodiscard]] std::optional<std::string> difference(const EpochDigest& expected, const EpochDigest& found);

Bytes encode(const EpochDigest& digest);
// Throws Error for anything malformed.
EpochDigest decode_epoch_digest(ByteView bytes);

// The digest of every page of a machine's memory. With it an epoch's digest depends on contents only: KVM may report a
// page as dirty that nobody wrote (it does when it maps one writable for a read), on one host and not on another.
class PageDigests {
 public:
  // Of fresh memory: all zeros.
  explicit PageDigests(const GuestMemory& memory);

  // Of memory with any contents.
  void refresh();
  // Of these pages, ascending, the ones that differ from what they were.
  [[nodiscard]] std::vector<PageDigest> update(std::span<const Gfn> dirty);
  // The pages of all memory, ascending, that are not as their digests say: nobody told that they were written.
  [[nodiscard]] std::vector<Gfn> altered() const;

 private:
  [[nodiscard]] Digest& at(Gfn gfn);
  [[nodiscard]] const Digest& at(Gfn gfn) const;

  const GuestMemory& memory_;
  std::vector<Digest> digests_;
};

}  // namespace pollux::vmm
