#include "vmm/devices/platform/rtc.h"

#include <algorithm>
#include <chrono>
#include <mutex>

#include "base/error.h"

namespace pollux::vmm {
namespace {

enum Register : std::uint8_t {
  kSeconds = 0x00,
  kMinutes = 0x02,
  kHours = 0x04,
  kWeekday = 0x06,
  kDay = 0x07,
  kMonth = 0x08,
  kYear = 0x09,
  kStatusA = 0x0a,
  kStatusB = 0x0b,
  kStatusC = 0x0c,
  kStatusD = 0x0d,
  kCentury = 0x32,  // as the FADT says
};

constexpr std::uint8_t kDividerRunning = 0x26;  // 32768 Hz, no update in progress
constexpr std::uint8_t k24Hours = 0x02;
constexpr std::uint8_t kBatteryGood = 0x80;
constexpr std::uint8_t kIndexMask = 0x7f;  // the top bit masks NMIs

std::uint8_t bcd(unsigned value) { return static_cast<std::uint8_t>(value / 10 % 10 << 4 | value % 10); }

}  // namespace

std::uint8_t Rtc::read_register() const {
  using namespace std::chrono;
  const sys_time<nanoseconds> now{input_.wall_clock()};
  const auto today = floor<days>(now);
  const year_month_day date(today);
  const hh_mm_ss time(floor<seconds>(now - today));
  const auto year = static_cast<unsigned>(static_cast<int>(date.year()));
  switch (index_) {
    case kSeconds: return bcd(static_cast<unsigned>(time.seconds().count()));
    case kMinutes: return bcd(static_cast<unsigned>(time.minutes().count()));
    case kHours: return bcd(static_cast<unsigned>(time.hours().count()));
    case kWeekday: return bcd(weekday(today).c_encoding() + 1);  // Sunday is 1
    case kDay: return bcd(static_cast<unsigned>(date.day()));
    case kMonth: return bcd(static_cast<unsigned>(date.month()));
    case kYear: return bcd(year % 100);
    case kCentury: return bcd(year / 100);
    case kStatusA: return kDividerRunning;
    case kStatusB: return k24Hours;
    case kStatusC: return 0;
    case kStatusD: return kBatteryGood;
    default: return registers_[index_];
  }
}

void Rtc::read(std::uint64_t offset, MutableByteView into) {
  const std::lock_guard lock(lock_);
  std::fill(into.begin(), into.end(), std::byte{0xff});  // the index port cannot be read
  if (offset == 1) into[0] = std::byte{read_register()};
}

void Rtc::write(std::uint64_t offset, ByteView from) {
  const std::lock_guard lock(lock_);
  const auto value = std::to_integer<std::uint8_t>(from[0]);
  if (offset == 0) {
    index_ = value & kIndexMask;
  } else {
    registers_[index_] = value;
  }
}

void Rtc::save(schema::RtcState::Builder state) const {
  state.setIndex(index_);
  state.setRegisters({registers_.data(), registers_.size()});
}

void Rtc::restore(schema::RtcState::Reader state) {
  const auto registers = state.getRegisters();
  if (registers.size() != registers_.size()) throw Error("saved RTC: wrong number of registers");
  std::copy(registers.begin(), registers.end(), registers_.begin());
  index_ = state.getIndex() & kIndexMask;
}

}  // namespace pollux::vmm
