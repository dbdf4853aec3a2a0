#include "vmm/machine/listen.h"

namespace pollux::vmm {
namespace {

// Frames taken from a NIC before other descriptors get their turn.
constexpr int kFramesPerTurn = 64;

void listen_to_nic(Backends& backends, NicIndex index, InputGate& gate, EventLoop& loop) {
  Nic& nic = backends.nic(index);
  if (nic.poll_fd() < 0) return;
  loop.watch(nic.poll_fd(), [index, &nic, &gate] {
    for (int i = 0; i < kFramesPerTurn; ++i) {
      auto frame = nic.receive();
      if (!frame) return;
      gate.offer(FrameArrival{index, std::move(*frame)});
    }
  });
}

void listen_to_console(Backends& backends, ConsoleIndex index, InputGate& gate, EventLoop& loop) {
  ConsolePort& console = backends.console(index);
  console.start();
  const int fd = console.poll_fd();
  if (fd < 0) return;
  loop.watch(fd, [index, fd, &console, &gate, &loop] {
    Bytes bytes = console.read();
    if (console.poll_fd() < 0) loop.unwatch(fd);  // end of file
    if (!bytes.empty()) gate.offer(ConsoleArrival{index, std::move(bytes)});
  });
}

}  // namespace

void listen(Backends& backends, InputGate& gate, EventLoop& loop) {
  for (std::uint32_t i = 0; i < backends.nic_count(); ++i) listen_to_nic(backends, {i}, gate, loop);
  for (std::uint32_t i = 0; i < kConsoleCount; ++i) listen_to_console(backends, {i}, gate, loop);
}

}  // namespace pollux::vmm
