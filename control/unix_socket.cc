#include "control/unix_socket.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstring>

#include "base/error.h"

namespace pollux::control {
namespace {

using Clock = std::chrono::steady_clock;

sockaddr_un address_of(const std::string& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.empty() || path.size() >= sizeof address.sun_path) {
    throw UsageError(path + ": expected the path of a socket, at most " + std::to_string(sizeof address.sun_path - 1) +
                     " bytes");
  }
  std::memcpy(address.sun_path, path.data(), path.size());
  return address;
}

const sockaddr* generic(const sockaddr_un& address) { return reinterpret_cast<const sockaddr*>(&address); }

Fd new_socket() {
  Fd socket(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!socket) throw errno_error("open", "a Unix socket");
  return socket;
}

// What a process that is gone has left may be replaced; nothing else.
void remove_stale(const std::string& path, const sockaddr_un& address) {
  struct stat found {};
  if (::lstat(path.c_str(), &found) != 0) return;
  if (!S_ISSOCK(found.st_mode)) throw UsageError(path + ": exists, and is no socket");
  const Fd probe = new_socket();
  if (::connect(probe.get(), generic(address), sizeof address) == 0 || errno == EAGAIN) {
    throw UsageError(path + ": in use by another process");
  }
  if (errno != ECONNREFUSED) throw UsageError(errno_error("connect to", path).what());
  (void)::unlink(path.c_str());
}

}  // namespace

Fd listen_unix(const std::string& path) {
  const sockaddr_un address = address_of(path);
  remove_stale(path, address);
  Fd socket = new_socket();
  // A socket file takes the mode of its socket, so it is at no time open to others.
  if (::fchmod(socket.get(), S_IRUSR | S_IWUSR) != 0) throw errno_error("chmod", path);
  if (::bind(socket.get(), generic(address), sizeof address) != 0) throw UsageError(errno_error("bind", path).what());
  constexpr int kBacklog = 8;
  if (::listen(socket.get(), kBacklog) != 0) throw errno_error("listen on", path);
  return socket;
}

Fd connect_unix(const std::string& path) {
  const sockaddr_un address = address_of(path);
  Fd socket = new_socket();
  if (::connect(socket.get(), generic(address), sizeof address) != 0) throw errno_error("connect to", path);
  return socket;
}

LineSocket::LineSocket(Fd socket, int wake, std::size_t limit) : socket_(std::move(socket)), wake_(wake), limit_(limit) {}

LineSocket::Ready LineSocket::wait_for(short events, std::optional<Clock::time_point> deadline) const {
  for (;;) {
    int time = -1;
    if (deadline) {
      const auto left = std::chrono::ceil<std::chrono::milliseconds>(*deadline - Clock::now()).count();
      time = static_cast<int>(std::max<std::int64_t>(left, 0));
    }
    std::array<pollfd, 2> waited{pollfd{socket_.get(), events, 0}, pollfd{wake_, POLLIN, 0}};
    const int ready = ::poll(waited.data(), waited.size(), time);
    if (ready < 0 && errno != EINTR) throw errno_error("poll", "a control socket");
    if (ready < 0) continue;
    if (waited[1].revents != 0) return Ready::kWoken;
    if (waited[0].revents != 0) return Ready::kYes;
    if (ready == 0) return Ready::kTimeout;
  }
}

LineSocket::Event LineSocket::receive(std::optional<std::chrono::milliseconds> timeout) {
  const auto deadline = timeout ? std::optional(Clock::now() + *timeout) : std::nullopt;
  for (;;) {
    if (const std::size_t end = received_.find('\n'); end != std::string::npos) {
      if (end + 1 > limit_) return Event::kTooLong;
      line_ = received_.substr(0, end);
      received_.erase(0, end + 1);
      return Event::kLine;
    }
    if (received_.size() >= limit_) return Event::kTooLong;
    switch (wait_for(POLLIN, deadline)) {
      case Ready::kTimeout: return Event::kTimeout;
      case Ready::kWoken: return Event::kWoken;
      case Ready::kYes: break;
    }
    std::array<char, 4096> buffer;
    const ssize_t bytes = ::recv(socket_.get(), buffer.data(), buffer.size(), 0);
    if (bytes < 0 && (errno == EAGAIN || errno == EINTR)) continue;
    if (bytes <= 0) return Event::kEnd;
    received_.append(buffer.data(), static_cast<std::size_t>(bytes));
  }
}

bool LineSocket::send(const std::string& line, std::chrono::milliseconds timeout) {
  const auto deadline = Clock::now() + timeout;
  const std::string bytes = line + "\n";
  for (std::size_t sent = 0; sent < bytes.size();) {
    const ssize_t taken = ::send(socket_.get(), bytes.data() + sent, bytes.size() - sent, MSG_NOSIGNAL);
    if (taken > 0) {
      sent += static_cast<std::size_t>(taken);
    } else if (taken < 0 && errno != EAGAIN && errno != EINTR) {
      return false;
    } else if (wait_for(POLLOUT, deadline) != Ready::kYes) {
      return false;
    }
  }
  return true;
}

bool LineSocket::ended_within(std::chrono::milliseconds time) {
  const auto deadline = Clock::now() + time;
  for (;;) {
    switch (wait_for(POLLIN, deadline)) {
      case Ready::kTimeout: return false;
      case Ready::kWoken: return true;
      case Ready::kYes: break;
    }
    std::array<char, 512> ignored;
    const ssize_t bytes = ::recv(socket_.get(), ignored.data(), ignored.size(), 0);
    if (bytes == 0 || (bytes < 0 && errno != EAGAIN && errno != EINTR)) return true;
  }
}

}  // namespace pollux::control
