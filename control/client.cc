#include "control/client.h"

#include "base/error.h"
#include "control/unix_socket.h"

namespace pollux::control {

void ask(const std::string& path, const Request& request, const std::function<bool(const std::string&)>& told) {
  LineSocket server(connect_unix(path), -1, kMaxAnswerBytes);
  // An answer may take as long as what was asked for, which the other side bounds. A refusal may have come already.
  (void)server.send(encode(request), std::chrono::milliseconds(5000));
  for (bool answered = false;; answered = true) {
    if (server.receive(std::nullopt) != LineSocket::Event::kLine) {
      if (answered) return;
      throw Error(path + ": pollux ended there without an answer");
    }
    if (!told(server.line()) || !request.watch) return;
  }
}

}  // namespace pollux::control
