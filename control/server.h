// Serves the control socket of one process. Its clients are the operator's (the socket's mode says so), but whatever they
// send, and however slowly they read, only their own connection suffers.
//
// Threads: one that accepts, one for each client, at most kMaxClients.
#pragma once

#include <atomic>
#include <chrono>
#include <list>
#include <string>
#include <thread>

#include "base/fd.h"
#include "control/desk.h"
#include "control/unix_socket.h"

namespace pollux::control {

class Server {
 public:
  static constexpr std::size_t kMaxClients = 8;
  static constexpr std::chrono::milliseconds kWatchInterval{1000};
  static constexpr std::chrono::milliseconds kLookInterval{100};  // for a change that a watcher is told at once
  static constexpr std::chrono::milliseconds kSendTimeout{2000};
  static constexpr std::chrono::milliseconds kIdleTimeout{60'000};

  // Throws UsageError when the path cannot be listened on.
  Server(std::string path, Desk& desk);
  // Ends every connection once its request is answered, and removes the socket file.
  ~Server();

 private:
  struct Client {
    std::thread thread;
    std::atomic<bool> ended = false;
  };

  void accept_clients();
  void reap();
  void serve(Fd socket);
  void watch(LineSocket& client, const Request& request);

  const std::string path_;
  Desk& desk_;
  Fd wake_;  // readable from the destructor on
  Fd listener_;
  std::list<Client> clients_;  // of the accepting thread
  std::thread thread_;
};

}  // namespace pollux::control
