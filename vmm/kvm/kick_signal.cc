#include "vmm/kvm/kick_signal.h"

#include <pthread.h>
#include <signal.h>

#include <mutex>

#include "base/error.h"

namespace pollux::vmm::kvm {

int kick_signal() { return SIGRTMIN; }

void install_kick_handler() {
  static std::once_flag once;
  std::call_once(once, [] {
    struct sigaction action {};
    action.sa_handler = [](int) {};
    ::sigemptyset(&action.sa_mask);
    POLLUX_ASSERT(::sigaction(kick_signal(), &action, nullptr) == 0);
  });
}

void accept_only_kicks() {
  install_kick_handler();
  sigset_t others;
  ::sigfillset(&others);
  ::sigdelset(&others, kick_signal());
  ::pthread_sigmask(SIG_SETMASK, &others, nullptr);
}

void accept_kicks() {
  install_kick_handler();
  sigset_t kick;
  ::sigemptyset(&kick);
  ::sigaddset(&kick, kick_signal());
  ::pthread_sigmask(SIG_UNBLOCK, &kick, nullptr);
}

}  // namespace pollux::vmm::kvm
