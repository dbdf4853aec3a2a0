#include "tests/unit/arbiter/etcd_server.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <netinet/in.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <future>
#include <sstream>

#include "base/fd.h"

namespace pollux::protocol {
namespace {

constexpr const char* kEtcd = "etcd";  // of PATH
constexpr int kStartAttempts = 5;  // another process may take a free port first

sockaddr_in loopback(std::uint16_t port) {
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(port);
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  return address;
}

// Reads etcd's log to its end; `serving` gets whether it came so far as to serve.
void read_log(Fd log, std::promise<bool> serving) {
  std::FILE* stream = ::fdopen(log.release(), "r");
  bool told = false;
  std::string all;
  char line[4096];
  while (std::fgets(line, sizeof line, stream) != nullptr) {
    if (told) continue;
    all += line;
    if (all.find("serving client traffic") != std::string::npos) {
      serving.set_value(told = true);
    }
  }
  std::fclose(stream);
  if (told) return;
  std::fputs(all.c_str(), stderr);
  serving.set_value(false);
}

}  // namespace

std::uint16_t free_port() {
  const Fd socket(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_in address = loopback(0);
  socklen_t length = sizeof address;
  EXPECT_EQ(::bind(socket.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address), 0);
  EXPECT_EQ(::getsockname(socket.get(), reinterpret_cast<sockaddr*>(&address), &length), 0);
  return ntohs(address.sin_port);
}

int connect_loopback(std::uint16_t port) {
  Fd socket(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  const sockaddr_in address = loopback(port);
  if (::connect(socket.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0) return -1;
  return socket.release();
}

EtcdServer::EtcdServer(std::vector<std::string> tls_arguments) : tls_arguments_(std::move(tls_arguments)) {
  for (int attempt = 0; attempt < kStartAttempts && !running(); ++attempt) {
    client_port_ = free_port();
    peer_port_ = free_port();
    std::filesystem::remove_all(data_ / "member");
    start();
  }
}

EtcdServer::~EtcdServer() { kill(); }

bool EtcdServer::available() {
  const char* path = std::getenv("PATH");
  std::istringstream folders(path != nullptr ? path : "");
  for (std::string folder; std::getline(folders, folder, ':');) {
    if (::access((folder + "/" + kEtcd).c_str(), X_OK) == 0) return true;
  }
  return false;
}

std::string EtcdServer::url() const {
  return fmt::format("{}://127.0.0.1:{}", tls_arguments_.empty() ? "http" : "https", client_port_);
}

std::vector<std::string> EtcdServer::arguments() const {
  const std::string peer = fmt::format("http://127.0.0.1:{}", peer_port_);
  std::vector<std::string> arguments{kEtcd, "--name=test", "--data-dir=" + data_.path(), "--logger=zap",
                                     "--log-outputs=stderr", "--log-level=info",
                                     // Of one member: nobody else has to hear of it.
                                     "--heartbeat-interval=10", "--election-timeout=100",
                                     "--listen-client-urls=" + url(), "--advertise-client-urls=" + url(),
                                     "--listen-peer-urls=" + peer, "--initial-advertise-peer-urls=" + peer,
                                     "--initial-cluster=test=" + peer};
  arguments.insert(arguments.end(), tls_arguments_.begin(), tls_arguments_.end());
  return arguments;
}

bool EtcdServer::start() {
  int ends[2];
  if (::pipe2(ends, O_CLOEXEC) != 0) return false;
  Fd reading(ends[0]);
  Fd writing(ends[1]);
  std::vector<std::string> texts = arguments();
  std::vector<char*> argv;
  for (std::string& text : texts) argv.push_back(text.data());
  argv.push_back(nullptr);
  pid_ = ::fork();
  if (pid_ == 0) {
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);
    ::dup2(writing.get(), STDERR_FILENO);
    ::execvp(kEtcd, argv.data());
    ::_exit(127);
  }
  writing.reset();
  std::promise<bool> serving;
  auto served = serving.get_future();
  log_reader_ = std::thread(read_log, std::move(reading), std::move(serving));
  if (served.get()) return true;
  kill();
  return false;
}

void EtcdServer::kill() {
  if (pid_ > 0) {
    ::kill(pid_, SIGKILL);
    ::waitpid(pid_, nullptr, 0);
    pid_ = -1;
  }
  if (log_reader_.joinable()) log_reader_.join();
}

void EtcdServer::restart() {
  kill();
  ASSERT_TRUE(start());
}

std::string EtcdServer::post(const std::string& target, const std::string& body) const {
  const Fd socket(connect_loopback(client_port_));
  const std::string request =
      fmt::format("POST {} HTTP/1.0\r\nContent-Length: {}\r\n\r\n{}", target, body.size(), body);
  if (::send(socket.get(), request.data(), request.size(), MSG_NOSIGNAL) < 0) return {};
  std::string answer;
  char buffer[4096];
  for (ssize_t got = 0; (got = ::recv(socket.get(), buffer, sizeof buffer, 0)) > 0;) {
    answer.append(buffer, static_cast<std::size_t>(got));
  }
  return answer;
}

}  // namespace pollux::protocol
