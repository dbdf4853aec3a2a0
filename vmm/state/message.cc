#include "vmm/state/message.h"

#include <kj/io.h>

#include <cstring>

namespace pollux::vmm {
namespace {

// Our messages are a few levels deep; readers may walk each part a few times.
constexpr int kMaxNesting = 16;
constexpr std::uint64_t kMaxWalks = 4;

}  // namespace

Bytes to_bytes(capnp::MessageBuilder& message) {
  Bytes bytes(capnp::computeSerializedSizeInWords(message) * sizeof(capnp::word));
  kj::ArrayOutputStream stream(kj::arrayPtr(reinterpret_cast<kj::byte*>(bytes.data()), bytes.size()));
  capnp::writeMessage(stream, message);
  return bytes;
}

ReceivedMessage::ReceivedMessage(const std::string& what, ByteView bytes) : what_(what) {
  if (bytes.empty() || bytes.size() % sizeof(capnp::word) != 0)
    throw Error(what + " is malformed: bad length");
  const std::size_t words = bytes.size() / sizeof(capnp::word);
  words_ = kj::heapArray<capnp::word>(words);
  std::memcpy(words_.begin(), bytes.data(), bytes.size());
  capnp::ReaderOptions options;
  options.traversalLimitInWords = words * kMaxWalks + 1024;
  options.nestingLimit = kMaxNesting;
  try {
    reader_ = kj::heap<capnp::FlatArrayMessageReader>(words_, options);
  } catch (const kj::Exception& exception) {
    throw malformed(exception);
  }
}

Error ReceivedMessage::malformed(const kj::Exception& exception) const {
  return Error(what_ + " is malformed: " + exception.getDescription().cStr());
}

}  // namespace pollux::vmm
