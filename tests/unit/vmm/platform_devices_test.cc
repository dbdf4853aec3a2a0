#include <capnp/message.h>
#include <gtest/gtest.h>

#include <array>
#include <random>
#include <string>

#include "base/error.h"
#include "vmm/devices/platform/i8042.h"
#include "vmm/devices/platform/power.h"
#include "vmm/devices/platform/rtc.h"
#include "vmm/devices/platform/serial.h"

namespace pollux::vmm {
namespace {

struct RecordedOutput final : OutputGate {
  bool transmit(NicIndex, ByteView) override { return true; }
  void on_room(std::function<void()>) override {}
  void console(ConsoleIndex console, ByteView bytes) override {
    EXPECT_EQ(console, kSerialConsole);
    for (const std::byte byte : bytes) text += static_cast<char>(byte);
  }
  bool read(DiskIndex, std::uint64_t, MutableByteView) override { return false; }
  bool write(DiskIndex, std::uint64_t, ByteView) override { return false; }
  bool discard(DiskIndex, std::uint64_t, std::uint64_t) override { return false; }
  bool flush(DiskIndex) override { return false; }
  std::string text;
};

struct CountingLine final : InterruptLine {
  void trigger() override { ++count; }
  int count = 0;
};

struct FixedInput final : InputGate {
  void attach(ArrivalSink&) override {}
  void offer(Arrival) override {}
  std::chrono::nanoseconds wall_clock() override { return now; }
  void entropy(MutableByteView) override {}
  std::chrono::nanoseconds now{};
};

std::uint8_t in(BusDevice& device, std::uint64_t offset) {
  std::array<std::byte, 1> value{};
  device.read(offset, value);
  return std::to_integer<std::uint8_t>(value[0]);
}

void out(BusDevice& device, std::uint64_t offset, std::uint8_t value) {
  const std::byte byte{value};
  device.write(offset, {&byte, 1});
}

class SerialPort : public ::testing::Test {
 protected:
  void type(const std::string& text) { serial_.deliver(std::as_bytes(std::span(text.data(), text.size()))); }
  std::string receive_all() {
    std::string text;
    while (in(serial_, 5) & 1) text += static_cast<char>(in(serial_, 0));
    return text;
  }

  RecordedOutput output_;
  CountingLine line_;
  Serial serial_{output_, line_};
};

TEST_F(SerialPort, SendsWhatIsWritten) {
  for (const char c : std::string("hi")) out(serial_, 0, static_cast<std::uint8_t>(c));
  EXPECT_EQ(output_.text, "hi");
  EXPECT_EQ(in(serial_, 5) & 0x60, 0x60);  // ready for more
  EXPECT_EQ(line_.count, 0) << "no interrupt was enabled";
}

TEST_F(SerialPort, InterruptsWhenItHasSent) {
  out(serial_, 1, 0x02);
  EXPECT_EQ(line_.count, 1) << "the transmitter is empty already";
  EXPECT_EQ(in(serial_, 2) & 0x0f, 0x02);
  EXPECT_EQ(in(serial_, 2) & 0x0f, 0x01) << "reading it acknowledges it";
  out(serial_, 0, 'x');
  EXPECT_EQ(line_.count, 2);
}

TEST_F(SerialPort, ReceivesInOrderAndInterrupts) {
  out(serial_, 1, 0x01);
  type("hello");
  EXPECT_EQ(line_.count, 1);
  EXPECT_EQ(in(serial_, 2) & 0x0f, 0x04);
  EXPECT_EQ(receive_all(), "hello");
  EXPECT_EQ(in(serial_, 2) & 0x0f, 0x01);
}

TEST_F(SerialPort, ClearingTheFifoSparesWhatHasNotArrivedYet) {
  out(serial_, 2, 0x01);
  type("0123456789abcdefREST");
  out(serial_, 2, 0x07);
  EXPECT_EQ(receive_all(), "REST");
}

TEST_F(SerialPort, InputIsBoundedAndTheLossIsTold) {
  type(std::string(2 * Serial::kMaxWaitingInput, 'x'));
  EXPECT_TRUE(in(serial_, 5) & 0x02);   // overrun
  EXPECT_FALSE(in(serial_, 5) & 0x02);  // told once
  EXPECT_LE(receive_all().size(), Serial::kMaxWaitingInput + Serial::kFifoBytes);
}

TEST_F(SerialPort, LoopsBackForDriversThatProbe) {
  out(serial_, 4, 0x1a);
  EXPECT_EQ(in(serial_, 6) & 0xf0, 0x90);  // Linux's 8250 test
  out(serial_, 0, 'z');
  EXPECT_EQ(receive_all(), "z");
  EXPECT_EQ(output_.text, "");
}

TEST_F(SerialPort, DivisorHidesBehindItsLatch) {
  out(serial_, 3, 0x83);
  out(serial_, 0, 0x34);
  out(serial_, 1, 0x12);
  EXPECT_EQ(in(serial_, 0), 0x34);
  EXPECT_EQ(in(serial_, 1), 0x12);
  out(serial_, 3, 0x03);
  EXPECT_EQ(in(serial_, 1), 0);
  EXPECT_EQ(output_.text, "");
}

TEST_F(SerialPort, StateSurvivesAndAPendingInterruptIsRaisedAgain) {
  out(serial_, 1, 0x01);
  out(serial_, 2, 0x01);
  out(serial_, 7, 0x5a);
  type("0123456789abcdef-and-more");
  capnp::MallocMessageBuilder message;
  auto state = message.initRoot<schema::SerialState>();
  serial_.save(state);
  CountingLine line;
  Serial other(output_, line);
  other.restore(state.asReader());
  EXPECT_EQ(line.count, 0);
  other.resume_after_restore();
  EXPECT_EQ(line.count, 1);
  EXPECT_EQ(in(other, 7), 0x5a);
  std::string text;
  while (in(other, 5) & 1) text += static_cast<char>(in(other, 0));
  EXPECT_EQ(text, "0123456789abcdef-and-more");
}

TEST_F(SerialPort, ImpossibleStateIsRefused) {
  capnp::MallocMessageBuilder message;
  auto state = message.initRoot<schema::SerialState>();
  state.initReceiveFifo(Serial::kFifoBytes + 1);
  EXPECT_THROW(serial_.restore(state.asReader()), Error);
}

TEST(PlatformDevices, SurviveEveryAccess) {
  RecordedOutput output;
  CountingLine line;
  FixedInput input;
  Serial serial(output, line);
  Rtc rtc(input);
  PowerManagement power([] {}, [] {});
  I8042 keyboard([] {});
  std::mt19937 random(7);
  for (BusDevice* device : {static_cast<BusDevice*>(&serial), static_cast<BusDevice*>(&rtc),
                            static_cast<BusDevice*>(&power), static_cast<BusDevice*>(&keyboard)}) {
    for (int i = 0; i < 20'000; ++i) {
      std::array<std::byte, 8> bytes{};
      for (std::byte& byte : bytes) byte = std::byte(random() & 0xff);
      const std::size_t width = std::size_t{1} << (random() % 4);
      const std::uint64_t offset = random() % 9;
      if (random() % 2) {
        device->read(offset, {bytes.data(), width});
      } else {
        device->write(offset, {bytes.data(), width});
      }
    }
  }
}

TEST(RealTimeClock, TellsTheTimeOfTheGateInBcd) {
  using namespace std::chrono;
  FixedInput input;
  input.now = sys_days{year{2024} / February / 29}.time_since_epoch() + 13h + 5min + 59s + 999ms;
  Rtc rtc(input);
  const auto value = [&](std::uint8_t index) {
    out(rtc, 0, index);
    return in(rtc, 1);
  };
  EXPECT_EQ(value(0x00), 0x59);
  EXPECT_EQ(value(0x02), 0x05);
  EXPECT_EQ(value(0x04), 0x13);
  EXPECT_EQ(value(0x06), 5);  // Thursday
  EXPECT_EQ(value(0x07), 0x29);
  EXPECT_EQ(value(0x08), 0x02);
  EXPECT_EQ(value(0x09), 0x24);
  EXPECT_EQ(value(0x32), 0x20);
  EXPECT_EQ(value(0x0b) & 0x06, 0x02);  // BCD, 24 hours
  EXPECT_EQ(value(0x0d), 0x80);
}

TEST(RealTimeClock, KeepsItsMemory) {
  FixedInput input;
  Rtc rtc(input);
  out(rtc, 0, 0x40);
  out(rtc, 1, 0xa5);
  capnp::MallocMessageBuilder message;
  auto state = message.initRoot<schema::RtcState>();
  rtc.save(state);
  Rtc other(input);
  other.restore(state.asReader());
  EXPECT_EQ(in(other, 1), 0xa5);
  state.initRegisters(3);
  EXPECT_THROW(other.restore(state.asReader()), Error);
}

TEST(Power, SwitchesOffOnSoftOffOnly) {
  int off = 0, reset = 0;
  PowerManagement power([&] { ++off; }, [&] { ++reset; });
  const auto control = [&](std::uint16_t value) { power.write(PowerManagement::kControl, bytes_of(value)); };
  control(3 << 10 | 1 << 13);
  EXPECT_EQ(off, 0) << "another sleep state";
  control(5 << 10);
  EXPECT_EQ(off, 0) << "not yet enabled";
  control(5 << 10 | 1 << 13);
  EXPECT_EQ(off, 1);
  std::array<std::byte, 2> value{};
  power.read(PowerManagement::kControl, value);
  EXPECT_EQ(std::to_integer<unsigned>(value[0]) & 1, 1u) << "always in ACPI mode";
  out(power, PowerManagement::kReset, 2);
  EXPECT_EQ(reset, 0);
  out(power, PowerManagement::kReset, PowerManagement::kResetValue);
  EXPECT_EQ(reset, 1);
}

TEST(Keyboard, OnlyItsResetLineCounts) {
  int reset = 0;
  I8042 keyboard([&] { ++reset; });
  EXPECT_EQ(in(keyboard, 4), 0);
  out(keyboard, 0, 0xfe);
  out(keyboard, 4, 0xd1);
  EXPECT_EQ(reset, 0);
  out(keyboard, 4, 0xfe);
  EXPECT_EQ(reset, 1);
}

}  // namespace
}  // namespace pollux::vmm
