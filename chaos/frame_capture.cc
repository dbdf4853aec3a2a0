#include "chaos/frame_capture.h"

#include <arpa/inet.h>
#include <linux/filter.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <poll.h>
#include <sys/socket.h>
#include <time.h>

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <optional>

#include "base/error.h"
#include "chaos/topology.h"
#include "tests/guests/lockstep/kv_protocol.h"

namespace pollux::chaos {
namespace {

constexpr int kReceiveBuffer = 16 << 20;
constexpr std::size_t kEthernetHeader = 14;
constexpr std::size_t kUdpHeader = 8;
constexpr std::size_t kMaxFrame = 2048;  // a response is smaller

// "ip and udp src port N, no fragment", as tcpdump -dd would write it: nothing else is copied to this process.
void filter_responses(const Fd& socket, std::uint16_t port) {
  sock_filter code[] = {
      BPF_STMT(BPF_LD | BPF_H | BPF_ABS, 12),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, ETH_P_IP, 0, 8),
      BPF_STMT(BPF_LD | BPF_B | BPF_ABS, 23),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, IPPROTO_UDP, 0, 6),
      BPF_STMT(BPF_LD | BPF_H | BPF_ABS, 20),
      BPF_JUMP(BPF_JMP | BPF_JSET | BPF_K, 0x1fff, 4, 0),
      BPF_STMT(BPF_LDX | BPF_B | BPF_MSH, kEthernetHeader),
      BPF_STMT(BPF_LD | BPF_H | BPF_IND, kEthernetHeader),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, port, 0, 1),
      BPF_STMT(BPF_RET | BPF_K, 0x40000),
      BPF_STMT(BPF_RET | BPF_K, 0),
  };
  const sock_fprog program{sizeof code / sizeof *code, code};
  if (::setsockopt(socket.get(), SOL_SOCKET, SO_ATTACH_FILTER, &program, sizeof program) != 0) {
    throw errno_error("filter", "a packet socket");
  }
}

std::chrono::nanoseconds nanoseconds(const timespec& time) {
  return std::chrono::seconds(time.tv_sec) + std::chrono::nanoseconds(time.tv_nsec);
}

// The kernel stamps packets with the clock of the day; a campaign counts on the monotonic one.
Moment moment_of(const timespec& stamp, const Stopwatch& watch) {
  timespec now{};
  ::clock_gettime(CLOCK_REALTIME, &now);
  return watch.now() - (nanoseconds(now) - nanoseconds(stamp));
}

std::optional<timespec> stamp_of(msghdr& message) {
  for (cmsghdr* control = CMSG_FIRSTHDR(&message); control != nullptr; control = CMSG_NXTHDR(&message, control)) {
    if (control->cmsg_level != SOL_SOCKET || control->cmsg_type != SCM_TIMESTAMPNS) continue;
    timespec stamp{};
    std::memcpy(&stamp, CMSG_DATA(control), sizeof stamp);
    return stamp;
  }
  return std::nullopt;
}

std::uint64_t digest_of(const char* bytes, std::size_t size) {  // FNV-1a
  std::uint64_t digest = 0xcbf2'9ce4'8422'2325;
  for (std::size_t i = 0; i < size; ++i) digest = (digest ^ static_cast<unsigned char>(bytes[i])) * 0x100'0000'01b3;
  return digest;
}

}  // namespace

FrameCapture::FrameCapture(const std::vector<std::string>& taps, std::uint16_t server_port, const Stopwatch& watch)
    : watch_(watch), socket_(::socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC, 0)), stop_(make_eventfd()) {
  if (!socket_) throw errno_error("make", "a packet socket");
  for (std::size_t host = 0; host < taps.size(); ++host) hosts_[Topology::index_of(taps[host])] = host;
  filter_responses(socket_, server_port);
  const int on = 1;
  if (::setsockopt(socket_.get(), SOL_SOCKET, SO_TIMESTAMPNS, &on, sizeof on) != 0 ||
      ::setsockopt(socket_.get(), SOL_SOCKET, SO_RCVBUFFORCE, &kReceiveBuffer, sizeof kReceiveBuffer) != 0) {
    // Without the right to a large buffer the default must do: lost() tells whether it did.
    (void)::setsockopt(socket_.get(), SOL_SOCKET, SO_RCVBUF, &kReceiveBuffer, sizeof kReceiveBuffer);
  }
  sockaddr_ll address{};
  address.sll_family = AF_PACKET;
  address.sll_protocol = htons(ETH_P_ALL);
  if (::bind(socket_.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0) {
    throw errno_error("bind", "a packet socket");
  }
  thread_ = std::thread([this] { run(); });
}

FrameCapture::~FrameCapture() { stop(); }

void FrameCapture::stop() {
  if (!thread_.joinable()) return;
  signal_eventfd(stop_);
  thread_.join();
}

void FrameCapture::run() {
  for (;;) {
    pollfd polls[2] = {{socket_.get(), POLLIN, 0}, {stop_.get(), POLLIN, 0}};
    ::poll(polls, 2, -1);
    for (;;) {  // until it is empty
      char frame[kMaxFrame];
      alignas(cmsghdr) char control[256];
      iovec part{frame, sizeof frame};
      sockaddr_ll from{};
      msghdr message{};
      message.msg_name = &from;
      message.msg_namelen = sizeof from;
      message.msg_iov = &part;
      message.msg_iovlen = 1;
      message.msg_control = control;
      message.msg_controllen = sizeof control;
      const ssize_t size = ::recvmsg(socket_.get(), &message, MSG_DONTWAIT);
      if (size < 0) break;
      const auto stamp = stamp_of(message);
      // What the kernel sends to a TAP is of the clients.
      if (from.sll_pkttype == PACKET_OUTGOING) continue;
      take(frame, static_cast<std::size_t>(size), from.sll_ifindex, stamp ? moment_of(*stamp, watch_) : watch_.now());
    }
    tpacket_stats statistics{};
    socklen_t size = sizeof statistics;
    if (::getsockopt(socket_.get(), SOL_PACKET, PACKET_STATISTICS, &statistics, &size) == 0) {
      const std::lock_guard lock(mutex_);
      lost_ += statistics.tp_drops;
    }
    if (polls[1].revents != 0) return;
  }
}

void FrameCapture::take(const char* frame, std::size_t size, int interface, Moment at) {
  const auto host = hosts_.find(interface);
  if (host == hosts_.end() || size <= kEthernetHeader) return;
  const std::size_t payload = kEthernetHeader + (static_cast<unsigned char>(frame[kEthernetHeader]) & 15U) * 4 + kUdpHeader;
  guests::KvResponse response{};
  if (size < payload + sizeof response) return;
  std::memcpy(&response, frame + payload, sizeof response);
  if (response.magic != guests::kKvMagic) return;
  const std::lock_guard lock(mutex_);
  if (frames_.size() == kMaxFrames) {
    ++lost_;
    return;
  }
  frames_.push_back({at, host->second, response.client, response.sequence, response.status == guests::KvStatus::kOld,
                     digest_of(frame + payload, sizeof response)});
}

std::vector<AnswerFrame> FrameCapture::frames() const {
  const std::lock_guard lock(mutex_);
  return frames_;
}

std::optional<Moment> FrameCapture::first_answer(std::size_t host, Moment after) const {
  const std::lock_guard lock(mutex_);
  std::optional<Moment> first;
  for (auto frame = frames_.rbegin(); frame != frames_.rend() && frame->at > after; ++frame) {
    if (frame->host == host) first = frame->at;
  }
  return first;
}

std::uint64_t FrameCapture::lost() const {
  const std::lock_guard lock(mutex_);
  return lost_;
}

}  // namespace pollux::chaos
