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

// A page whose content an epoch changed, as it is at the epoch's end. Only a part of its digest: it is to tell which pages
// differ when EpochDigest::memory has told that some do.
struct PageDigest {
  Gfn gfn;
  std::uint32_t content = 0;
  bool operator==(const PageDigest&) const = default;
};

// The state at an epoch's end, after its inputs were delivered. As memory was alike before, the pages changed tell all
// of it.
struct EpochDigest {
  Digest registers;
  Digest devices;
  Digest memory;                  // of the pages' numbers and whole digests
  std::vector<PageDigest> pages;  // ascending
  bool operator==(const EpochDigest&) const = default;
  // All of it in one.
  [[nodiscard]] Digest combined() const;
};

[[nodiscard]] std::vector<Gfn> pages_of(const EpochDigest& digest);

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
  struct Update {
    std::vector<PageDigest> changed;  // ascending
    Digest memory;
    std::vector<Gfn> cold;  // ascending: for kColdAfter updates in a row they were suspected, and not changed
  };
  // Of these pages, ascending, the ones that differ from what they were.
  [[nodiscard]] Update update(std::span<const Gfn> suspects);
  // To look at a page that did not change costs 0.12 us if it is in the processor's cache and 0.36 us if not, to be told of its
  // next change 2.3 us. So a page is looked at until that has cost about as much as being told: whatever the guest does next,
  // it then costs about twice what it had to at most.
  static constexpr std::uint8_t kColdAfter = 8;
  // The pages of all memory, ascending, that are not as their digests say: nobody told that they were written.
  [[nodiscard]] std::vector<Gfn> altered() const;

 private:
  [[nodiscard]] Digest& at(Gfn gfn);
  [[nodiscard]] const Digest& at(Gfn gfn) const;

  const GuestMemory& memory_;
  std::vector<Digest> digests_;
  std::vector<std::uint8_t> unchanged_;  // updates in a row
};

}  // namespace pollux::vmm
