#include "vmm/io/event_loop.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <pthread.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cstdio>
#include <future>
#include <stdexcept>
#include <thread>

#include "base/fd.h"
#include "tests/support/eventually.h"

namespace pollux::vmm {
namespace {

using namespace std::chrono_literals;
using pollux::testing::eventually;

TEST(EventLoopTest, TasksRunInOrderOnTheNamedThread) {
  EventLoop loop("a rather long name");
  std::vector<int> order;
  std::promise<std::string> name;
  for (int i = 0; i < 3; ++i) loop.post([&order, i] { order.push_back(i); });
  loop.post([&] {
    std::array<char, 16> text{};
    pthread_getname_np(pthread_self(), text.data(), text.size());
    EXPECT_TRUE(loop.in_loop_thread());
    name.set_value(text.data());
  });
  EXPECT_EQ(name.get_future().get(), "a rather long n");
  EXPECT_EQ(order, (std::vector{0, 1, 2}));
  EXPECT_FALSE(loop.in_loop_thread());
}

TEST(EventLoopTest, ReadableDescriptorRunsItsCallback) {
  const Fd event = make_eventfd();
  EventLoop loop("test");
  std::atomic<int> count = 0;
  loop.watch(event.get(), [&] { count += drain_eventfd(event); });
  for (int i = 1; i <= 3; ++i) {
    signal_eventfd(event);
    EXPECT_TRUE(eventually([&] { return count == i; }));
  }
  loop.unwatch(event.get());
  signal_eventfd(event);
  std::this_thread::sleep_for(20ms);
  EXPECT_EQ(count, 3);
  loop.unwatch(event.get());  // unknown by now: nothing happens
}

TEST(EventLoopTest, ThrowingCallbacksAreSurvived) {
  const Fd event = make_eventfd();
  EventLoop loop("test");
  std::atomic<int> count = 0;
  loop.watch(event.get(), [&] {
    drain_eventfd(event);
    ++count;
    throw std::runtime_error("thrown on purpose");
  });
  loop.post([] { throw 42; });
  signal_eventfd(event);
  EXPECT_TRUE(eventually([&] { return count == 1; }));
  signal_eventfd(event);
  EXPECT_TRUE(eventually([&] { return count == 2; }));
}

TEST(EventLoopTest, UnwatchWaitsForTheCallbackUnderWay) {
  const Fd event = make_eventfd();
  EventLoop loop("test");
  std::atomic<bool> entered = false;
  std::atomic<bool> left = false;
  loop.watch(event.get(), [&] {
    drain_eventfd(event);
    entered = true;
    std::this_thread::sleep_for(30ms);
    left = true;
  });
  signal_eventfd(event);
  ASSERT_TRUE(eventually([&] { return entered.load(); }));
  loop.unwatch(event.get());
  EXPECT_TRUE(left);
}

TEST(EventLoopTest, CallbackMayUnwatchItself) {
  const Fd event = make_eventfd();
  EventLoop loop("test");
  std::atomic<int> count = 0;
  signal_eventfd(event);
  loop.watch(event.get(), [&] {
    ++count;
    loop.unwatch(event.get());  // still readable: would run for ever
  });
  EXPECT_TRUE(eventually([&] { return count > 0; }));
  std::this_thread::sleep_for(20ms);
  EXPECT_EQ(count, 1);
}

TEST(EventLoopTest, RegularFileIsReadToItsEnd) {
  std::FILE* file = std::tmpfile();
  ASSERT_NE(file, nullptr);
  const int fd = ::fileno(file);
  ASSERT_EQ(::write(fd, "abcdef", 6), 6);
  ASSERT_EQ(::lseek(fd, 0, SEEK_SET), 0);
  EventLoop loop("test");
  std::string text;
  std::promise<void> end;
  loop.watch(fd, [&] {
    char c = 0;
    if (::read(fd, &c, 1) == 1) {
      text += c;
    } else {
      loop.unwatch(fd);
      end.set_value();
    }
  });
  ASSERT_EQ(end.get_future().wait_for(10s), std::future_status::ready);
  EXPECT_EQ(text, "abcdef");
  loop.stop();
  std::fclose(file);
}

TEST(EventLoopTest, StopDropsWhatHasNotStarted) {
  EventLoop loop("test");
  std::promise<void> started;
  std::promise<void> release;
  bool ran = false;
  loop.post([&] {
    started.set_value();
    release.get_future().wait();
  });
  loop.post([&] { ran = true; });
  started.get_future().wait();
  std::thread stopper([&] { loop.stop(); });
  std::this_thread::sleep_for(20ms);
  release.set_value();
  stopper.join();
  EXPECT_FALSE(ran);
  loop.post([&] { ran = true; });
  loop.stop();
  EXPECT_FALSE(ran);
}

}  // namespace
}  // namespace pollux::vmm
