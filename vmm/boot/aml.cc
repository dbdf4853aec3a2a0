#include "vmm/boot/aml.h"

#include <limits>

#include "base/error.h"

namespace pollux::vmm::boot::aml {
namespace {

// Opcodes (20.3, table 20.2).
constexpr std::uint8_t kZero = 0x00, kOne = 0x01, kName = 0x08, kBytePrefix = 0x0a, kWordPrefix = 0x0b;
constexpr std::uint8_t kDwordPrefix = 0x0c, kStringPrefix = 0x0d, kQwordPrefix = 0x0e, kScope = 0x10,
                       kBuffer = 0x11;
constexpr std::uint8_t kPackage = 0x12, kExtended = 0x5b, kDevice = 0x82;

void append(Bytes& bytes, const Bytes& more) { bytes.insert(bytes.end(), more.begin(), more.end()); }
void append(Bytes& bytes, std::uint64_t value, unsigned width) {
  for (unsigned i = 0; i < width; ++i) bytes.push_back(std::byte(value >> (8 * i) & 0xff));
}

Bytes opcode(std::uint8_t value) { return {std::byte{value}}; }

Bytes prefixed(std::uint8_t prefix, std::uint64_t value, unsigned width) {
  Bytes bytes = opcode(prefix);
  append(bytes, value, width);
  return bytes;
}

Bytes name_string(std::string_view name) {
  const std::string_view segment = name.starts_with('\\') ? name.substr(1) : name;
  POLLUX_ASSERT(segment.size() == 4);
  Bytes bytes;
  for (const char c : name) bytes.push_back(std::byte(c));
  return bytes;
}

// A term with its PkgLength (20.2.4), which counts itself: one byte up to 63, else four more bits in the
// first byte and the rest in up to three more.
Bytes with_length(Bytes start, const Bytes& body) {
  constexpr std::size_t kOneByte = 0x3f;
  if (body.size() + 1 <= kOneByte) {
    start.push_back(std::byte(body.size() + 1));
  } else {
    unsigned extra = 1;
    while (body.size() + 1 + extra >= std::size_t{1} << (4 + 8 * extra)) ++extra;
    POLLUX_ASSERT(extra <= 3);
    const std::size_t length = body.size() + 1 + extra;
    start.push_back(std::byte(extra << 6 | (length & 0xf)));
    append(start, length >> 4, extra);
  }
  append(start, body);
  return start;
}

Bytes named_block(Bytes start, std::string_view name, const std::vector<Bytes>& terms) {
  Bytes body = name_string(name);
  append(body, concat(terms));
  return with_length(std::move(start), body);
}

}  // namespace

Bytes concat(const std::vector<Bytes>& terms) {
  Bytes bytes;
  for (const Bytes& term : terms) append(bytes, term);
  return bytes;
}

Bytes integer(std::uint64_t value) {
  if (value == 0) return opcode(kZero);
  if (value == 1) return opcode(kOne);
  if (value <= std::numeric_limits<std::uint8_t>::max()) return prefixed(kBytePrefix, value, 1);
  if (value <= std::numeric_limits<std::uint16_t>::max()) return prefixed(kWordPrefix, value, 2);
  if (value <= std::numeric_limits<std::uint32_t>::max()) return prefixed(kDwordPrefix, value, 4);
  return prefixed(kQwordPrefix, value, 8);
}

Bytes string(std::string_view value) {
  Bytes bytes = opcode(kStringPrefix);
  for (const char c : value) bytes.push_back(std::byte(c));
  bytes.push_back(std::byte{0});
  return bytes;
}

// Three letters of 5 bits each and four hexadecimal digits, most significant byte first.
Bytes eisa_id(std::string_view id) {
  POLLUX_ASSERT(id.size() == 7);
  std::uint32_t value = 0;
  for (const char c : id.substr(0, 3)) value = value << 5 | static_cast<std::uint32_t>(c - 'A' + 1);
  for (const char c : id.substr(3)) {
    value = value << 4 | static_cast<std::uint32_t>(c <= '9' ? c - '0' : c - 'A' + 10);
  }
  return prefixed(kDwordPrefix, __builtin_bswap32(value), 4);
}

Bytes name(std::string_view name, const Bytes& value) {
  Bytes bytes = opcode(kName);
  append(bytes, name_string(name));
  append(bytes, value);
  return bytes;
}

Bytes package(const std::vector<Bytes>& elements) {
  Bytes body{std::byte(elements.size())};
  append(body, concat(elements));
  return with_length(opcode(kPackage), body);
}

Bytes scope(std::string_view name, const std::vector<Bytes>& terms) {
  return named_block(opcode(kScope), name, terms);
}

Bytes device(std::string_view name, const std::vector<Bytes>& terms) {
  return named_block({std::byte{kExtended}, std::byte{kDevice}}, name, terms);
}

Bytes resource_template(const std::vector<Bytes>& descriptors) {
  Bytes resources = concat(descriptors);
  append(resources, 0x0079, 2);  // end tag; a checksum of 0 is always right (6.4.2.9)
  Bytes body = integer(resources.size());
  append(body, resources);
  return with_length(opcode(kBuffer), body);
}

Bytes memory32_fixed(std::uint32_t start, std::uint32_t length) {  // 6.4.3.4
  Bytes bytes = prefixed(0x86, 9, 2);
  append(bytes, 1, 1);  // writable
  append(bytes, start, 4);
  append(bytes, length, 4);
  return bytes;
}

Bytes io_ports(std::uint16_t start, std::uint8_t length) {  // 6.4.2.5
  Bytes bytes = prefixed(0x47, 1, 1);                       // decodes 16 bits
  append(bytes, start, 2);
  append(bytes, start, 2);
  append(bytes, 1, 1);  // alignment
  append(bytes, length, 1);
  return bytes;
}

Bytes extended_interrupt(std::uint32_t gsi) {  // 6.4.3.6
  constexpr std::uint8_t kConsumerEdgeHighExclusive = 0x03;
  Bytes bytes = prefixed(0x89, 6, 2);
  append(bytes, kConsumerEdgeHighExclusive, 1);
  append(bytes, 1, 1);
  append(bytes, gsi, 4);
  return bytes;
}

Bytes isa_interrupt(unsigned irq) {  // 6.4.2.1, with the flags byte
  constexpr std::uint8_t kEdgeHighExclusive = 0x01;
  Bytes bytes = prefixed(0x23, std::uint64_t{1} << irq, 2);
  append(bytes, kEdgeHighExclusive, 1);
  return bytes;
}

}  // namespace pollux::vmm::boot::aml
