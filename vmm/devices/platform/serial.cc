#include "vmm/devices/platform/serial.h"

#include <algorithm>
#include <mutex>

#include "base/error.h"

namespace pollux::vmm {
namespace {

// Offsets; the first two are the divisor's halves while DLAB is set.
enum Register : std::uint64_t {
  kData,
  kInterruptEnable,
  kIdentification,
  kLineControl,
  kModemControl,
  kLineStatus,
  kModemStatus,
  kScratch
};

constexpr std::uint8_t kEnableReceived = 0x01, kEnableTransmitterEmpty = 0x02, kEnableLineStatus = 0x04;
constexpr std::uint8_t kEnableMask = 0x0f;
constexpr std::uint8_t kIdNone = 0x01, kIdTransmitterEmpty = 0x02, kIdReceived = 0x04, kIdLineStatus = 0x06;
constexpr std::uint8_t kIdFifos = 0xc0;
constexpr std::uint8_t kFifoEnable = 0x01, kFifoClearReceive = 0x02, kFifoStored = 0xc9;
constexpr std::uint8_t kDivisorLatch = 0x80;
constexpr std::uint8_t kLoopback = 0x10, kModemControlMask = 0x1f;
constexpr std::uint8_t kStatusData = 0x01, kStatusOverrun = 0x02, kStatusTransmitterIdle = 0x60;
constexpr std::uint8_t kClearToSend = 0x10, kDataSetReady = 0x20, kRing = 0x40, kCarrier = 0x80;

Bytes to_bytes(const std::deque<std::byte>& queue) { return {queue.begin(), queue.end()}; }

std::deque<std::byte> from_data(capnp::Data::Reader data, std::size_t limit) {
  if (data.size() > limit) throw Error("saved serial port: too much input");
  const auto* bytes = reinterpret_cast<const std::byte*>(data.begin());
  return {bytes, bytes + data.size()};
}

}  // namespace

// Registers are a byte wide: of a wider access the device sees the lowest byte.
void Serial::read(std::uint64_t offset, MutableByteView into) {
  const std::lock_guard lock(lock_);
  std::fill(into.begin(), into.end(), std::byte{0xff});
  into[0] = std::byte{read_register(offset)};
  update_interrupt();
}

void Serial::write(std::uint64_t offset, ByteView from) {
  const std::lock_guard lock(lock_);
  write_register(offset, std::to_integer<std::uint8_t>(from[0]));
  update_interrupt();
}

std::uint8_t Serial::read_register(std::uint64_t offset) {
  const bool divisor = (line_control_ & kDivisorLatch) != 0;
  switch (offset) {
    case kData: return divisor ? static_cast<std::uint8_t>(divisor_ & 0xff) : read_receiver();
    case kInterruptEnable: return divisor ? static_cast<std::uint8_t>(divisor_ >> 8) : interrupt_enable_;
    case kIdentification: return read_interrupt_identification();
    case kLineControl: return line_control_;
    case kModemControl: return modem_control_;
    case kLineStatus: return line_status();
    case kModemStatus: return modem_status();
    case kScratch: return scratch_;
    default: return 0xff;
  }
}

void Serial::write_register(std::uint64_t offset, std::uint8_t value) {
  const bool divisor = (line_control_ & kDivisorLatch) != 0;
  switch (offset) {
    case kData:
      if (divisor) {
        divisor_ = static_cast<std::uint16_t>((divisor_ & 0xff00) | value);
      } else {
        transmit(value);
      }
      break;
    case kInterruptEnable:
      if (divisor) {
        divisor_ = static_cast<std::uint16_t>((divisor_ & 0x00ff) | value << 8);
      } else {
        // Enabling it while the transmitter is empty, which it always is, raises it.
        if (value & ~interrupt_enable_ & kEnableTransmitterEmpty) transmitter_empty_pending_ = true;
        interrupt_enable_ = value & kEnableMask;
      }
      break;
    case kIdentification: write_fifo_control(value); break;
    case kLineControl: line_control_ = value; break;
    case kModemControl: modem_control_ = value & kModemControlMask; break;
    case kScratch: scratch_ = value; break;
    default: break;  // the status registers are read-only
  }
}

void Serial::transmit(std::uint8_t value) {
  const std::byte byte{value};
  if (modem_control_ & kLoopback) {
    receive(byte);
  } else {
    output_.console(kSerialConsole, {&byte, 1});
  }
  transmitter_empty_pending_ = true;
}

void Serial::write_fifo_control(std::uint8_t value) {
  const bool toggled = ((value ^ fifo_control_) & kFifoEnable) != 0;
  if (toggled || (value & kFifoClearReceive)) fifo_.clear();
  fifo_control_ = value & kFifoStored;
  refill_fifo();
}

std::uint8_t Serial::read_receiver() {
  if (fifo_.empty()) return 0;
  const auto value = std::to_integer<std::uint8_t>(fifo_.front());
  fifo_.pop_front();
  refill_fifo();
  return value;
}

void Serial::refill_fifo() {
  const std::size_t room = fifo_control_ & kFifoEnable ? kFifoBytes : 1;
  while (fifo_.size() < room && !waiting_.empty()) {
    fifo_.push_back(waiting_.front());
    waiting_.pop_front();
  }
}

void Serial::receive(std::byte value) {
  if (waiting_.size() >= kMaxWaitingInput) {
    overrun_ = true;
    return;
  }
  waiting_.push_back(value);
  refill_fifo();
}

std::uint8_t Serial::pending_interrupt() const {
  if ((interrupt_enable_ & kEnableLineStatus) && overrun_) return kIdLineStatus;
  if ((interrupt_enable_ & kEnableReceived) && !fifo_.empty()) return kIdReceived;
  if ((interrupt_enable_ & kEnableTransmitterEmpty) && transmitter_empty_pending_) return kIdTransmitterEmpty;
  return kIdNone;
}

std::uint8_t Serial::read_interrupt_identification() {
  const std::uint8_t pending = pending_interrupt();
  if (pending == kIdTransmitterEmpty) transmitter_empty_pending_ = false;  // reading it acknowledges it
  return pending | (fifo_control_ & kFifoEnable ? kIdFifos : 0);
}

std::uint8_t Serial::line_status() {
  std::uint8_t status = kStatusTransmitterIdle;
  if (!fifo_.empty()) status |= kStatusData;
  if (overrun_) status |= kStatusOverrun;
  overrun_ = false;
  return status;
}

// In loopback the outputs come back as inputs, by which drivers recognize a real port; else a peer is there.
std::uint8_t Serial::modem_status() const {
  if (!(modem_control_ & kLoopback)) return kClearToSend | kDataSetReady | kCarrier;
  std::uint8_t status = 0;
  if (modem_control_ & 0x01) status |= kDataSetReady;
  if (modem_control_ & 0x02) status |= kClearToSend;
  if (modem_control_ & 0x04) status |= kRing;
  if (modem_control_ & 0x08) status |= kCarrier;
  return status;
}

void Serial::update_interrupt() {
  const bool pending = pending_interrupt() != kIdNone;
  if (pending && !asserted_) interrupt_.trigger();
  asserted_ = pending;
}

void Serial::deliver(ByteView input) {
  const std::lock_guard lock(lock_);
  for (const std::byte value : input) receive(value);
  update_interrupt();
}

void Serial::save(schema::SerialState::Builder state) const {
  state.setInterruptEnable(interrupt_enable_);
  state.setFifoControl(fifo_control_);
  state.setLineControl(line_control_);
  state.setModemControl(modem_control_);
  state.setScratch(scratch_);
  state.setDivisor(divisor_);
  state.setTransmitterEmptyPending(transmitter_empty_pending_);
  state.setOverrun(overrun_);
  const Bytes fifo = to_bytes(fifo_), waiting = to_bytes(waiting_);
  state.setReceiveFifo({reinterpret_cast<const capnp::byte*>(fifo.data()), fifo.size()});
  state.setWaitingInput({reinterpret_cast<const capnp::byte*>(waiting.data()), waiting.size()});
}

void Serial::restore(schema::SerialState::Reader state) {
  fifo_ = from_data(state.getReceiveFifo(), kFifoBytes);
  waiting_ = from_data(state.getWaitingInput(), kMaxWaitingInput);
  interrupt_enable_ = state.getInterruptEnable() & kEnableMask;
  fifo_control_ = state.getFifoControl() & kFifoStored;
  line_control_ = state.getLineControl();
  modem_control_ = state.getModemControl() & kModemControlMask;
  scratch_ = state.getScratch();
  divisor_ = state.getDivisor();
  transmitter_empty_pending_ = state.getTransmitterEmptyPending();
  overrun_ = state.getOverrun();
}

void Serial::resume_after_restore() {
  const std::lock_guard lock(lock_);
  asserted_ = false;
  update_interrupt();
}

}  // namespace pollux::vmm
