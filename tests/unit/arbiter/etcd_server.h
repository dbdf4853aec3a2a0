// A real etcd on loopback, of one member, for one test.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <string>
#include <thread>
#include <vector>

#include "tests/unit/arbiter/temporary_directory.h"

namespace pollux::protocol {

class EtcdServer {
 public:
  // Started and serving, or why not: available() is false where the etcd-server package is missing.
  explicit EtcdServer(std::vector<std::string> tls_arguments = {});
  EtcdServer(const EtcdServer&) = delete;
  EtcdServer& operator=(const EtcdServer&) = delete;
  ~EtcdServer();

  [[nodiscard]] static bool available();
  [[nodiscard]] bool running() const { return pid_ > 0; }
  [[nodiscard]] std::string url() const;
  [[nodiscard]] std::uint16_t port() const { return client_port_; }

  void kill();     // SIGKILL; the data stays
  void restart();  // on the same ports and data

  // The body of the answer to a POST, over plain HTTP.
  std::string post(const std::string& target, const std::string& body) const;

 private:
  bool start();
  [[nodiscard]] std::vector<std::string> arguments() const;

  const std::vector<std::string> tls_arguments_;
  TemporaryDirectory data_;
  std::uint16_t client_port_ = 0;
  std::uint16_t peer_port_ = 0;
  pid_t pid_ = -1;
  std::thread log_reader_;
};

// A TCP port of loopback that nobody has right now.
[[nodiscard]] std::uint16_t free_port();

// A connected TCP socket to a port of loopback; -1 when nobody listens.
[[nodiscard]] int connect_loopback(std::uint16_t port);

}  // namespace pollux::protocol
