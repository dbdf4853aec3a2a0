// An encoder of the little ACPI Machine Language the DSDT needs (ACPI 6.4, chapter 20).
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

#include "base/bytes.h"

namespace pollux::vmm::boot::aml {

// Each function returns an encoded term; terms are concatenated to lists.
Bytes concat(const std::vector<Bytes>& terms);

// A number in its shortest encoding (20.2.3).
Bytes integer(std::uint64_t value);
Bytes string(std::string_view value);
// "PNP0501" as the 32-bit number ASL's EISAID() makes (19.3.4).
Bytes eisa_id(std::string_view id);
// Name(`name`, `value`); a name segment has 4 characters, and "\" before it means the root.
Bytes name(std::string_view name, const Bytes& value);
Bytes package(const std::vector<Bytes>& elements);
Bytes scope(std::string_view name, const std::vector<Bytes>& terms);
Bytes device(std::string_view name, const std::vector<Bytes>& terms);

// Resource descriptors (6.4), and the buffer they are put into.
Bytes resource_template(const std::vector<Bytes>& descriptors);
Bytes memory32_fixed(std::uint32_t start, std::uint32_t length);
Bytes io_ports(std::uint16_t start, std::uint8_t length);
// Edge-triggered, active-high, exclusive.
Bytes extended_interrupt(std::uint32_t gsi);
Bytes isa_interrupt(unsigned irq);

}  // namespace pollux::vmm::boot::aml
