// Cap'n Proto messages to and from plain bytes, with errors of our own kind.
#pragma once

#include <capnp/message.h>
#include <capnp/serialize.h>
#include <kj/exception.h>

#include <string>

#include "base/bytes.h"
#include "base/error.h"

namespace pollux::vmm {

Bytes to_bytes(capnp::MessageBuilder& message);

// A message in its own aligned copy of the bytes. Throws Error when it is not even framed as one.
class ReceivedMessage {
 public:
  ReceivedMessage(const std::string& what, ByteView bytes);

  // Calls `read` with the root. Cap'n Proto checks a message as it is walked: whatever it finds wrong then,
  // in here or in what `read` calls, becomes an Error "<what> is malformed: ...".
  template <class Root, class Function>
  auto read(Function&& function) {
    try {
      return function(reader_->getRoot<Root>());
    } catch (const kj::Exception& exception) {
      throw malformed(exception);
    }
  }

 private:
  [[nodiscard]] Error malformed(const kj::Exception& exception) const;

  std::string what_;
  kj::Array<capnp::word> words_;
  kj::Own<capnp::FlatArrayMessageReader> reader_;
};

}  // namespace pollux::vmm
