#include "vmm/deterministic/environment.h"

#include <cstring>

#include "vmm/deterministic/epoch_inputs.h"

namespace pollux::vmm {

void Environment::record() {
  replaying_ = false;
  recorded_.clear();
  taken_.clear();
  used_ = 0;
}

void Environment::replay(std::vector<std::uint64_t> recorded) {
  record();
  replaying_ = true;
  recorded_ = std::move(recorded);
}

std::chrono::nanoseconds Environment::wall_clock() {
  const std::uint64_t value = next(Kind::kClock);
  const auto time = std::chrono::nanoseconds(static_cast<std::int64_t>(value));
  see_clock(time);
  return time;
}

std::uint64_t Environment::word() { return next(Kind::kEntropy); }

void Environment::entropy(MutableByteView into) {
  while (!into.empty()) {
    const std::uint64_t value = word();
    const std::size_t part = std::min(into.size(), sizeof value);
    std::memcpy(into.data(), &value, part);
    into = into.subspan(part);
  }
}

std::chrono::nanoseconds Environment::host_clock() {
  see_clock(host_.wall_clock());
  return last_clock_;
}

std::uint64_t Environment::next(Kind kind) {
  if (used_ == kMaxEnvironmentValues) {
    excessive_ = true;
    return 0;
  }
  if (replaying_) {
    exhausted_ = exhausted_ || used_ == recorded_.size();
    return exhausted_ ? 0 : recorded_[used_++];
  }
  ++used_;
  taken_.push_back(ask_host(kind));
  return taken_.back();
}

std::uint64_t Environment::ask_host(Kind kind) {
  if (kind == Kind::kClock) return static_cast<std::uint64_t>(host_clock().count());
  std::uint64_t value = 0;
  host_.entropy(mutable_bytes_of(value));
  return value;
}

}  // namespace pollux::vmm
