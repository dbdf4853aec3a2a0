#include "cli/signals.h"

#include <pthread.h>
#include <signal.h>
#include <unistd.h>

#include <utility>

#include "vmm/devices/terminal.h"

namespace pollux::cli {
namespace {

// SIGUSR1 is how the destructor ends the waiting thread.
sigset_t watched_signals() {
  sigset_t signals;
  sigemptyset(&signals);
  for (const int signal : {SIGINT, SIGTERM, SIGUSR1}) sigaddset(&signals, signal);
  return signals;
}

}  // namespace

SignalWatcher::SignalWatcher() {
  const sigset_t signals = watched_signals();
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);
  ::signal(SIGPIPE, SIG_IGN);
}

SignalWatcher::~SignalWatcher() { disarm(); }

void SignalWatcher::disarm() {
  if (!thread_.joinable()) return;
  leaving_ = true;
  pthread_kill(thread_.native_handle(), SIGUSR1);
  thread_.join();
}

void SignalWatcher::on_signal(std::function<void()> stop) {
  thread_ = std::thread([this, stop = std::move(stop)] {
    const sigset_t signals = watched_signals();
    for (;;) {
      int signal = 0;
      sigwait(&signals, &signal);
      if (leaving_) return;
      if (signal == SIGUSR1) continue;
      if (received_ != 0) {
        vmm::restore_terminal();
        _exit(128 + signal);
      }
      received_ = signal;
      stop();
    }
  });
}

}  // namespace pollux::cli
