// The serial port COM1: a 16550A (PC16550D data sheet) at an infinite baud rate.
#pragma once

#include <array>
#include <cstdint>
#include <deque>

#include "vmm/devices/bus_device.h"
#include "vmm/devices/device_lock.h"
#include "vmm/devices/platform/platform_state.capnp.h"
#include "vmm/gates/output_gate.h"

namespace pollux::vmm {

class Serial final : public BusDevice {
 public:
  static constexpr std::size_t kFifoBytes = 16;
  // Input beyond the FIFO waits here, as it would in the sender's end of the line; what exceeds it is lost
  // (and the guest sees an overrun).
  static constexpr std::size_t kMaxWaitingInput = 64 * 1024;

  Serial(OutputGate& output, InterruptLine& interrupt) : output_(output), interrupt_(interrupt) {}

  void read(std::uint64_t offset, MutableByteView into) override;
  void write(std::uint64_t offset, ByteView from) override;
  void freeze() override { lock_.freeze(); }
  void thaw() override { lock_.thaw(); }

  // Input from the world. Any thread; waits while frozen.
  void deliver(ByteView input);

  // Only while frozen (or before use). restore() throws Error on impossible state.
  void save(schema::SerialState::Builder state) const;
  void restore(schema::SerialState::Reader state);
  // After restore() and thaw(): an interrupt that was pending may not have reached the irqchip.
  void resume_after_restore();

 private:
  [[nodiscard]] std::uint8_t read_register(std::uint64_t offset);
  void write_register(std::uint64_t offset, std::uint8_t value);
  [[nodiscard]] std::uint8_t read_receiver();
  [[nodiscard]] std::uint8_t read_interrupt_identification();
  [[nodiscard]] std::uint8_t line_status();
  [[nodiscard]] std::uint8_t modem_status() const;
  [[nodiscard]] std::uint8_t pending_interrupt() const;
  void transmit(std::uint8_t value);
  void write_fifo_control(std::uint8_t value);
  void receive(std::byte value);
  void refill_fifo();
  void update_interrupt();

  OutputGate& output_;
  InterruptLine& interrupt_;

  DeviceLock lock_;
  // Below: guarded by lock_.
  std::uint8_t interrupt_enable_ = 0;
  std::uint8_t fifo_control_ = 0;
  std::uint8_t line_control_ = 0;
  std::uint8_t modem_control_ = 0;
  std::uint8_t scratch_ = 0;
  std::uint16_t divisor_ = 12;  // 9600 baud
  bool transmitter_empty_pending_ = false;
  bool overrun_ = false;
  bool asserted_ = false;  // the interrupt line, which is edge-triggered
  std::deque<std::byte> fifo_;
  std::deque<std::byte> waiting_;
};

}  // namespace pollux::vmm
