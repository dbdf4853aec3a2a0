// One thread that waits for file descriptors and runs callbacks, one at a time.
//
// The machine has one for NICs, consoles and rng, and one for each disk, whose operations block.
#pragma once

#include <chrono>
#include <functional>
#include <memory>
#include <string>

namespace pollux::vmm {

class EventLoop {
 public:
  using Callback = std::function<void()>;

  // A descriptor that epoll refuses (standard input redirected from a regular file) is always readable; its
  // callback runs at this pace, so that reading a file does not keep a core busy.
  static constexpr std::chrono::milliseconds kUnpollablePace{10};
  static constexpr std::size_t kMaxWatched = 256;

  // Starts the thread; `name` is cut to the 15 characters Linux shows.
  explicit EventLoop(const std::string& name);
  ~EventLoop();  // stop()
  EventLoop(const EventLoop&) = delete;
  EventLoop& operator=(const EventLoop&) = delete;

  // Runs `on_readable` whenever `fd` is readable (level-triggered; end of file and errors count). A callback
  // that throws is logged and the loop goes on. `fd` must not be watched already. Throws Error beyond
  // kMaxWatched.
  void watch(int fd, Callback on_readable);
  // From another thread: when it returns, the callback is not running and never will again; so the caller
  // holds no lock the callback wants. From the loop's own thread (also from the callback itself): it will not
  // run again. Unknown descriptors are ignored.
  void unwatch(int fd);
  // Runs `task` once on the loop, in the order of the calls. Not bounded: callers coalesce their own posts.
  void post(Callback task);
  [[nodiscard]] bool in_loop_thread() const;

  // Finishes the callback under way, drops all others and joins the thread. Not from the loop's own thread.
  void stop();

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace pollux::vmm
