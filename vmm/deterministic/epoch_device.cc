#include "vmm/deterministic/epoch_device.h"

#include <algorithm>
#include <cstring>

#include "base/error.h"
#include "vmm/guest/abi.h"

namespace pollux::vmm {
namespace {

constexpr std::size_t kWord = sizeof(std::uint64_t);
// Console output kept for the end of the epoch; more goes on at once.
constexpr std::size_t kMaxPrinted = std::size_t{64} * 1024;

}  // namespace

void EpochDevice::read(std::uint64_t offset, MutableByteView into) {
  std::uint64_t value = ~std::uint64_t{0};
  if (into.size() == kWord) {
    switch (offset) {
      // What these two load is filled in when the next epoch's length is known.
      case guest_abi::kEpochEnd: request_ = Request::kEpochEnd; break;
      case guest_abi::kWait: request_ = Request::kWait; break;
      case guest_abi::kClockNs: value = static_cast<std::uint64_t>(environment_.wall_clock().count()); break;
      case guest_abi::kEntropy: value = environment_.word(); break;
      default: break;
    }
  }
  std::memcpy(into.data(), &value, std::min(into.size(), kWord));
}

void EpochDevice::write(std::uint64_t offset, ByteView from) {
  if (offset == guest_abi::kConsole) return print(from);
  if (offset == guest_abi::kPowerOff && from.size() == sizeof exit_code_) {
    std::memcpy(&exit_code_, from.data(), sizeof exit_code_);
    request_ = Request::kPowerOff;
    return;
  }
  if (from.size() != kWord) return;
  std::uint64_t value = 0;
  std::memcpy(&value, from.data(), kWord);
  if (offset == guest_abi::kTimerNs) state_.timer_ns = value;
  if (offset == guest_abi::kEventWord) state_.event_word = is_event_word(value) ? value : 0;
}

void EpochDevice::print(ByteView bytes) {
  printed_.insert(printed_.end(), bytes.begin(), bytes.end());
  if (printed_.size() >= kMaxPrinted) flush();
}

bool EpochDevice::flush() {
  if (printed_.empty()) return false;
  output_.console(kSerialConsole, printed_);
  printed_.clear();
  return true;
}

bool EpochDevice::take_timer(std::chrono::nanoseconds clock) {
  if (state_.timer_ns == 0 || static_cast<std::uint64_t>(clock.count()) < state_.timer_ns) return false;
  state_.timer_ns = 0;
  return true;
}

bool EpochDevice::is_event_word(std::uint64_t address) const {
  return address != 0 && address % kWord == 0 && memory_.view({address}, kWord).has_value();
}

bool EpochDevice::raise(std::uint64_t events) {
  if (state_.event_word == 0) return false;
  std::uint64_t word = 0;
  POLLUX_ASSERT(memory_.read({state_.event_word}, mutable_bytes_of(word)));
  word |= events;
  POLLUX_ASSERT(memory_.write({state_.event_word}, bytes_of(word)));
  return true;
}

bool EpochDevice::events_waiting() const {
  if (state_.event_word == 0) return false;
  std::uint64_t word = 0;
  POLLUX_ASSERT(memory_.read({state_.event_word}, mutable_bytes_of(word)));
  return word != 0;
}

void EpochDevice::restore(const State& state) {
  if (state.event_word != 0 && !is_event_word(state.event_word)) throw Error("restore epoch device: bad event word");
  state_ = state;
}

}  // namespace pollux::vmm
