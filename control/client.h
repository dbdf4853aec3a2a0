// Asks a running pollux through its control socket.
#pragma once

#include <functional>
#include <string>

#include "control/request.h"
#include "control/status.h"

namespace pollux::control {

// Calls `told` with each answer's line: once, or, watching, until `told` returns false or the other side ends. Throws Error
// when it cannot be asked or ends without an answer.
void ask(const std::string& path, const Request& request, const std::function<bool(const std::string& line)>& told);

}  // namespace pollux::control
