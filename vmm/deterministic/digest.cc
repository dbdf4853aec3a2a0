#include "vmm/deterministic/digest.h"

#include <fmt/format.h>
#include <xxhash.h>
// Redirects its functions to variants that are chosen for this processor when the program runs (SSE2, AVX2, AVX-512).
#include <xxh_x86dispatch.h>

#include <algorithm>
#include <array>
#include <utility>

#include "vmm/deterministic/byte_coding.h"

namespace pollux::vmm {
namespace {

// Pages named in one line.
constexpr std::size_t kMaxNamedPages = 8;
// At least.
constexpr std::size_t kPageDigestBytes = 1 + sizeof(std::uint32_t);
// Far more than a machine has.
constexpr std::size_t kMaxPages = std::size_t{1} << 30;

// Frames have addresses beyond the 32-bit hole, digests have not.
std::uint64_t index_of(Gfn gfn) {
  constexpr std::uint64_t kHole = (kHoleEnd.value - kHoleStart.value) >> kPageShift;
  return gfn.value < kHoleEnd.gfn().value ? gfn.value : gfn.value - kHole;
}

void put(ByteWriter& writer, const Digest& digest) {
  writer.put(digest.low);
  writer.put(digest.high);
}

Digest take_digest(ByteReader& reader) {
  Digest digest;
  digest.low = reader.take<std::uint64_t>();
  digest.high = reader.take<std::uint64_t>();
  return digest;
}

// The pages that are in one list only, or differ.
std::vector<Gfn> differing_pages(const std::vector<PageDigest>& a, const std::vector<PageDigest>& b) {
  std::vector<Gfn> pages;
  for (std::size_t i = 0, j = 0; i < a.size() || j < b.size();) {
    if (j == b.size() || (i < a.size() && a[i].gfn < b[j].gfn)) {
      pages.push_back(a[i++].gfn);
    } else if (i == a.size() || b[j].gfn < a[i].gfn) {
      pages.push_back(b[j++].gfn);
    } else {
      if (a[i].content != b[j].content) pages.push_back(a[i].gfn);
      ++i;
      ++j;
    }
  }
  return pages;
}

std::string named(const std::vector<Gfn>& pages) {
  std::string text = pages.size() == 1 ? "page" : fmt::format("{} pages:", pages.size());
  for (std::size_t i = 0; i < std::min(pages.size(), kMaxNamedPages); ++i) {
    text += fmt::format(" {:#x}", address_of(pages[i]).value);
  }
  return pages.size() > kMaxNamedPages ? text + " ..." : text;
}

}  // namespace

Digest digest_of(ByteView bytes) {
  const XXH128_hash_t hash = XXH3_128bits(bytes.data(), bytes.size());
  return {hash.low64, hash.high64};
}

std::string to_string(const Digest& digest) { return fmt::format("{:016x}{:016x}", digest.high, digest.low); }

Digest EpochDigest::combined() const { return digest_of(encode(*this)); }

std::vector<Gfn> pages_of(const EpochDigest& digest) {
  std::vector<Gfn> pages;
  pages.reserve(digest.pages.size());
  for (const PageDigest& page : digest.pages) pages.push_back(page.gfn);
  return pages;
}

std::vector<Gfn> differing_pages(const EpochDigest& expected, const EpochDigest& found) {
  return differing_pages(expected.pages, found.pages);
}

std::optional<std::string> difference(const EpochDigest& expected, const EpochDigest& found) {
  if (expected == found) return std::nullopt;
  std::string text;
  const auto add = [&text](const std::string& part) { text += (text.empty() ? "" : ", ") + part; };
  if (expected.registers != found.registers) add("registers");
  if (expected.devices != found.devices) add("devices");
  const std::vector<Gfn> pages = differing_pages(expected.pages, found.pages);
  if (!pages.empty()) {
    add(named(pages));
  } else if (expected.memory != found.memory) {
    add("memory");  // once in 2^32 times it is not known where
  }
  return text;
}

Bytes encode(const EpochDigest& digest) {
  ByteWriter writer;
  writer.reserve(52 + digest.pages.size() * kPageDigestBytes);
  put(writer, digest.registers);
  put(writer, digest.devices);
  put(writer, digest.memory);
  writer.put(static_cast<std::uint32_t>(digest.pages.size()));
  std::uint64_t next = 0;
  for (const PageDigest& page : digest.pages) {
    writer.put_varint(page.gfn.value - next);
    writer.put(page.content);
    next = page.gfn.value + 1;
  }
  return writer.take();
}

EpochDigest decode_epoch_digest(ByteView bytes) {
  ByteReader reader("epoch digest", bytes);
  EpochDigest digest;
  digest.registers = take_digest(reader);
  digest.devices = take_digest(reader);
  digest.memory = take_digest(reader);
  digest.pages.resize(reader.take_count(kMaxPages, kPageDigestBytes));
  std::uint64_t next = 0;
  for (PageDigest& page : digest.pages) {
    const std::uint64_t gap = reader.take_varint();
    reader.require(gap < kMaxPages && next < kMaxPages, "bad page number");
    page = {{next + gap}, reader.take<std::uint32_t>()};
    next = page.gfn.value + 1;
  }
  reader.require_end();
  return digest;
}

PageDigests::PageDigests(const GuestMemory& memory) : memory_(memory) {
  static constexpr std::array<std::byte, kPageSize> kZeros{};
  digests_.assign(memory.size() >> kPageShift, digest_of(kZeros));
  unchanged_.assign(digests_.size(), 0);
}

Digest& PageDigests::at(Gfn gfn) { return digests_.at(index_of(gfn)); }

const Digest& PageDigests::at(Gfn gfn) const { return digests_.at(index_of(gfn)); }

std::vector<Gfn> PageDigests::altered() const {
  std::vector<Gfn> pages;
  for (const Gfn gfn : memory_.all_gfns()) {
    if (digest_of(memory_.page(gfn)) != at(gfn)) pages.push_back(gfn);
  }
  return pages;
}

void PageDigests::refresh() {
  for (const Gfn gfn : memory_.all_gfns()) at(gfn) = digest_of(memory_.page(gfn));
}

PageDigests::Update PageDigests::update(std::span<const Gfn> suspects) {
  struct Changed {
    std::uint64_t gfn;
    Digest content;
  };
  std::vector<Changed> all;
  all.reserve(suspects.size());
  Update result;
  result.changed.reserve(suspects.size());
  for (const Gfn gfn : suspects) {
    const Digest content = digest_of(memory_.page(gfn));
    std::uint8_t& unchanged = unchanged_.at(index_of(gfn));
    if (std::exchange(at(gfn), content) == content) {
      if (++unchanged < kColdAfter) continue;
      result.cold.push_back(gfn);
    } else {
      all.push_back({gfn.value, content});
      result.changed.push_back({gfn, static_cast<std::uint32_t>(content.low)});
    }
    unchanged = 0;
  }
  result.memory = digest_of(std::as_bytes(std::span(all)));
  return result;
}

}  // namespace pollux::vmm
