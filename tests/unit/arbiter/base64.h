#pragma once

#include <sodium.h>

#include <string>

namespace pollux::protocol {

inline std::string base64(const std::string& text) {
  std::string encoded(sodium_base64_ENCODED_LEN(text.size(), sodium_base64_VARIANT_ORIGINAL), '\0');
  sodium_bin2base64(encoded.data(), encoded.size(), reinterpret_cast<const unsigned char*>(text.data()),
                    text.size(), sodium_base64_VARIANT_ORIGINAL);
  encoded.pop_back();
  return encoded;
}

}  // namespace pollux::protocol
