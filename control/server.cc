#include "control/server.h"

#include <poll.h>
#include <spdlog/spdlog.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <utility>

#include "base/error.h"

namespace pollux::control {

Server::Server(std::string path, Desk& desk)
    : path_(std::move(path)),
      desk_(desk),
      wake_(make_eventfd()),
      listener_(listen_unix(path_)),
      thread_([this] { accept_clients(); }) {}

Server::~Server() {
  signal_eventfd(wake_);
  thread_.join();
  (void)::unlink(path_.c_str());
}

void Server::accept_clients() {
  for (;;) {
    std::array<pollfd, 2> waited{pollfd{listener_.get(), POLLIN, 0}, pollfd{wake_.get(), POLLIN, 0}};
    if (::poll(waited.data(), waited.size(), -1) < 0 && errno != EINTR) break;
    if (waited[1].revents != 0) break;
    reap();
    Fd socket(::accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
    if (!socket) {
      // Out of descriptors, say: not to be asked again and again without a pause.
      if (errno != EAGAIN && errno != EINTR && errno != ECONNABORTED) (void)::poll(&waited[1], 1, 100);
      continue;
    }
    if (clients_.size() >= kMaxClients) {
      LineSocket refused(std::move(socket), -1, kMaxRequestBytes);
      (void)refused.send(error_answer("too many clients"), std::chrono::milliseconds(0));
      continue;
    }
    Client& client = clients_.emplace_back();
    client.thread = std::thread([this, &client, own = std::move(socket)]() mutable {
      try {
        serve(std::move(own));
      } catch (const std::exception& error) {
        spdlog::warn("control socket: {}", error.what());
      }
      client.ended = true;
    });
  }
  for (Client& client : clients_) client.thread.join();
}

void Server::reap() {
  std::erase_if(clients_, [](Client& client) {
    if (!client.ended) return false;
    client.thread.join();
    return true;
  });
}

void Server::serve(Fd socket) {
  LineSocket client(std::move(socket), wake_.get(), kMaxRequestBytes);
  for (;;) {
    switch (client.receive(kIdleTimeout)) {
      case LineSocket::Event::kLine: break;
      case LineSocket::Event::kTooLong:
        (void)client.send(error_answer("the request is longer than " + std::to_string(kMaxRequestBytes) + " bytes"),
                          kSendTimeout);
        return;
      default: return;
    }
    Request request;
    try {
      request = parse_request(client.line());
    } catch (const Error& error) {
      if (!client.send(error_answer(error.what()), kSendTimeout)) return;
      continue;
    }
    if (request.watch) return watch(client, request);
    if (!client.send(desk_.answer(request), kSendTimeout)) return;
  }
}

// Until the client or this process ends.
void Server::watch(LineSocket& client, const Request& request) {
  for (;;) {
    const Status told = desk_.watched();
    // Of a replica that is not there yet there are no statistics to be told.
    const bool nothing = request.command == Command::kStats && desk_.between_roles();
    if (!nothing && !client.send(desk_.answer(request), kSendTimeout)) return;
    for (auto waited = std::chrono::milliseconds(0); waited < kWatchInterval; waited += kLookInterval) {
      if (client.ended_within(kLookInterval)) return;
      if (desk_.watched() != told) break;
    }
  }
}

}  // namespace pollux::control
