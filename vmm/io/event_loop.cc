#include "vmm/io/event_loop.h"

#include <pthread.h>
#include <spdlog/spdlog.h>
#include <sys/epoll.h>

#include <array>
#include <atomic>
#include <cerrno>
#include <condition_variable>
#include <csignal>
#include <deque>
#include <map>
#include <mutex>
#include <thread>
#include <vector>

#include "base/error.h"
#include "base/fd.h"
#include "base/thread_name.h"

namespace pollux::vmm {
namespace {

using Clock = std::chrono::steady_clock;

constexpr std::size_t kMaxEventsPerWait = 32;

}  // namespace

class EventLoop::Impl {
 public:
  explicit Impl(const std::string& name) : name_(name), epoll_(::epoll_create1(EPOLL_CLOEXEC)) {
    if (!epoll_) throw errno_error("create", "epoll instance");
    add_to_epoll(wake_.get(), kWake);
    thread_ = std::thread([this] { run(); });
  }

  void watch(int fd, Callback on_readable) {
    const std::lock_guard lock(mutex_);
    if (watches_.size() >= kMaxWatched) throw Error("watch descriptor: too many on loop " + name_);
    const std::uint64_t id = ++last_id_;
    const bool pollable = add_to_epoll(fd, id);
    watches_.emplace(id, Watch{fd, pollable, std::make_shared<Callback>(std::move(on_readable))});
    if (!pollable) signal_eventfd(wake_);  // the loop now has a pace to keep
  }

  void unwatch(int fd) {
    std::unique_lock lock(mutex_);
    for (auto it = watches_.begin(); it != watches_.end(); ++it) {
      if (it->second.fd != fd) continue;
      if (it->second.pollable) ::epoll_ctl(epoll_.get(), EPOLL_CTL_DEL, fd, nullptr);
      const std::uint64_t id = it->first;
      watches_.erase(it);
      if (!in_loop_thread()) callback_done_.wait(lock, [&] { return running_ != id; });
      return;
    }
  }

  void post(Callback task) {
    {
      const std::lock_guard lock(mutex_);
      if (stopping_) return;
      tasks_.push_back(std::move(task));
    }
    signal_eventfd(wake_);
  }

  [[nodiscard]] bool in_loop_thread() const {
    return loop_id_.load(std::memory_order_relaxed) == std::this_thread::get_id();
  }

  void stop() {
    POLLUX_ASSERT(!in_loop_thread());
    {
      const std::lock_guard lock(mutex_);
      stopping_ = true;
    }
    signal_eventfd(wake_);
    if (thread_.joinable()) thread_.join();
    const std::lock_guard lock(mutex_);
    tasks_.clear();
    watches_.clear();
  }

 private:
  // Watches are told apart by an id, not by descriptor: a number may be closed and used again while its old
  // events are still in the batch at hand.
  static constexpr std::uint64_t kWake = 0;
  struct Watch {
    int fd;
    bool pollable;
    std::shared_ptr<Callback> callback;
  };

  // False for what epoll cannot wait for: always readable, as poll(2) has it.
  bool add_to_epoll(int fd, std::uint64_t id) {
    epoll_event event{};
    event.events = EPOLLIN;
    event.data.u64 = id;
    if (::epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, fd, &event) == 0) return true;
    if (errno != EPERM) throw errno_error("watch", "descriptor " + std::to_string(fd));
    return false;
  }

  void run() {
    name_this_thread(name_);
    // Signals are for the threads that expect them: the main thread, and vCPUs that are kicked.
    sigset_t all;
    sigfillset(&all);
    pthread_sigmask(SIG_BLOCK, &all, nullptr);
    loop_id_.store(std::this_thread::get_id(), std::memory_order_relaxed);
    auto next_unpollable = Clock::now();
    while (!stopping()) {
      std::array<epoll_event, kMaxEventsPerWait> events;
      const int count = ::epoll_wait(epoll_.get(), events.data(), events.size(), wait_limit());
      for (int i = 0; i < count; ++i) {
        const std::uint64_t id = events[static_cast<std::size_t>(i)].data.u64;
        if (id == kWake) {
          drain_eventfd(wake_);
        } else {
          run_watch(id);
        }
      }
      if (Clock::now() >= next_unpollable) {
        for (const std::uint64_t id : unpollable()) run_watch(id);
        next_unpollable = Clock::now() + kUnpollablePace;
      }
      run_tasks();
    }
  }

  int wait_limit() { return unpollable().empty() ? -1 : static_cast<int>(kUnpollablePace.count()); }

  std::vector<std::uint64_t> unpollable() {
    const std::lock_guard lock(mutex_);
    std::vector<std::uint64_t> ids;
    for (const auto& [id, watch] : watches_) {
      if (!watch.pollable) ids.push_back(id);
    }
    return ids;
  }

  void run_watch(std::uint64_t id) {
    std::shared_ptr<Callback> callback;
    {
      const std::lock_guard lock(mutex_);
      const auto found = watches_.find(id);
      if (found == watches_.end() || stopping_) return;
      callback = found->second.callback;  // kept alive: it may unwatch itself
      running_ = id;
    }
    guarded(*callback);
    callback.reset();
    {
      const std::lock_guard lock(mutex_);
      running_ = kWake;
    }
    callback_done_.notify_all();
  }

  // The tasks posted before this turn; what they post waits for the next, so that descriptors get their turn
  // too.
  void run_tasks() {
    std::deque<Callback> tasks;
    {
      const std::lock_guard lock(mutex_);
      tasks.swap(tasks_);
    }
    for (const Callback& task : tasks) {
      if (stopping()) return;
      guarded(task);
    }
  }

  void guarded(const Callback& callback) {
    try {
      callback();
    } catch (const std::exception& error) {
      spdlog::error("loop {}: {}", name_, error.what());
    } catch (...) {
      spdlog::error("loop {}: a callback threw something unknown", name_);
    }
  }

  bool stopping() {
    const std::lock_guard lock(mutex_);
    return stopping_;
  }

  std::string name_;
  Fd epoll_;
  Fd wake_ = make_eventfd();
  std::mutex mutex_;
  std::condition_variable callback_done_;
  std::map<std::uint64_t, Watch> watches_;
  std::deque<Callback> tasks_;
  std::uint64_t last_id_ = kWake;
  std::uint64_t running_ = kWake;
  bool stopping_ = false;
  std::atomic<std::thread::id> loop_id_;
  std::thread thread_;
};

EventLoop::EventLoop(const std::string& name) : impl_(std::make_unique<Impl>(name)) {}
EventLoop::~EventLoop() { stop(); }
void EventLoop::watch(int fd, Callback on_readable) { impl_->watch(fd, std::move(on_readable)); }
void EventLoop::unwatch(int fd) { impl_->unwatch(fd); }
void EventLoop::post(Callback task) { impl_->post(std::move(task)); }
bool EventLoop::in_loop_thread() const { return impl_->in_loop_thread(); }
void EventLoop::stop() { impl_->stop(); }

}  // namespace pollux::vmm
