// A disk whose operations a test can hold up, let go one by one, count, and let fail; otherwise a raw image
// like any.
#pragma once

#include <array>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <string>

#include "vmm/block/image.h"

namespace pollux::testing {

enum class DiskCall : unsigned { kRead, kWrite, kDiscard, kSync };

// Thread safe.
class ControlledImage final : public vmm::Image {
 public:
  explicit ControlledImage(const std::string& path) : Image(path, false) {}

  // From now on calls of this kind wait.
  void hold(DiskCall call) {
    const std::lock_guard lock(mutex_);
    of(call).held = true;
  }
  // Lets one call go that waits, or the next.
  void let_one_go(DiskCall call) {
    const std::lock_guard lock(mutex_);
    ++of(call).passes;
    changed_.notify_all();
  }
  // Nothing waits any more.
  void let_all_go() {
    const std::lock_guard lock(mutex_);
    for (Control& control : controls_) control.held = false;
    changed_.notify_all();
  }
  // From now on calls of this kind fail, those that wait too.
  void fail(DiskCall call) {
    const std::lock_guard lock(mutex_);
    of(call).fails = true;
  }

  // None fails any more.
  void recover() {
    const std::lock_guard lock(mutex_);
    for (Control& control : controls_) control.fails = false;
  }

  // Calls of this kind so far, those that wait too.
  [[nodiscard]] std::uint64_t begun(DiskCall call) const {
    const std::lock_guard lock(mutex_);
    return of(call).begun;
  }
  // What these calls were about, in all.
  [[nodiscard]] std::uint64_t bytes(DiskCall call) const {
    const std::lock_guard lock(mutex_);
    return of(call).bytes;
  }
  // False: it did not come to so many.
  [[nodiscard]] bool wait_until_begun(DiskCall call, std::uint64_t count) const {
    std::unique_lock lock(mutex_);
    return changed_.wait_for(lock, std::chrono::seconds(60), [&] { return of(call).begun >= count; });
  }

  [[nodiscard]] bool read(std::uint64_t offset, MutableByteView into) override {
    return enter(DiskCall::kRead, into.size()) && Image::read(offset, into);
  }
  [[nodiscard]] bool write(std::uint64_t offset, ByteView from) override {
    return enter(DiskCall::kWrite, from.size()) && Image::write(offset, from);
  }
  [[nodiscard]] bool discard(std::uint64_t offset, std::uint64_t length) override {
    return enter(DiskCall::kDiscard, length) && Image::discard(offset, length);
  }
  [[nodiscard]] bool sync() override { return enter(DiskCall::kSync, 0) && Image::sync(); }

 private:
  struct Control {
    bool held = false;
    bool fails = false;
    std::uint64_t passes = 0;
    std::uint64_t begun = 0;
    std::uint64_t bytes = 0;
  };

  [[nodiscard]] Control& of(DiskCall call) { return controls_.at(static_cast<unsigned>(call)); }
  [[nodiscard]] const Control& of(DiskCall call) const { return controls_.at(static_cast<unsigned>(call)); }

  // False: it shall fail.
  bool enter(DiskCall call, std::uint64_t bytes) {
    std::unique_lock lock(mutex_);
    Control& control = of(call);
    ++control.begun;
    control.bytes += bytes;
    changed_.notify_all();
    changed_.wait(lock, [&] { return !control.held || control.passes > 0; });
    if (control.held) --control.passes;
    return !control.fails;
  }

  mutable std::mutex mutex_;
  mutable std::condition_variable changed_;
  std::array<Control, 4> controls_;
};

}  // namespace pollux::testing
