#pragma once

#include "base/error.h"

namespace pollux::protocol::session {

// The peer is not who it should be, or the bytes are not what it sent. The connection cannot go on.
class SessionError : public Error {
 public:
  using Error::Error;
};

}  // namespace pollux::protocol::session
