#include "vmm/deterministic/epoch_inputs.h"

#include "vmm/deterministic/byte_coding.h"
#include "vmm/guest/abi.h"
#include "vmm/machine/machine_config.h"

namespace pollux::vmm {
namespace {

enum class ArrivalKind : std::uint8_t { kFrame = 0, kConsole = 1 };

constexpr std::size_t kCompletionBytes = 4;     // disk, status, head
constexpr std::size_t kArrivalHeaderBytes = 6;  // kind, device, length

void put_arrival(ByteWriter& writer, ArrivalKind kind, std::uint32_t device, const Bytes& bytes) {
  writer.put(kind);
  writer.put(static_cast<std::uint8_t>(device));
  writer.put(static_cast<std::uint32_t>(bytes.size()));
  writer.put_bytes(bytes);
}

Arrival take_arrival(ByteReader& reader, std::size_t& room) {
  const auto kind = reader.take<std::uint8_t>();
  const std::uint32_t device = reader.take<std::uint8_t>();
  const auto length = reader.take<std::uint32_t>();
  reader.require(length <= room, "too many bytes arrive");
  room -= length;
  const ByteView view = reader.take_bytes(length);
  Bytes bytes(view.begin(), view.end());
  switch (static_cast<ArrivalKind>(kind)) {
    case ArrivalKind::kFrame:
      reader.require(device < kMaxNics, "bad NIC");
      return FrameArrival{{device}, std::move(bytes)};
    case ArrivalKind::kConsole:
      reader.require(device < kConsoleCount, "bad console");
      return ConsoleArrival{{device}, std::move(bytes)};
  }
  throw Error("epoch inputs: unknown kind of arrival");
}

DiskCompletion take_completion(ByteReader& reader) {
  DiskCompletion done;
  done.disk = {reader.take<std::uint8_t>()};
  done.completion.status = reader.take<std::uint8_t>();
  done.completion.head = reader.take<std::uint16_t>();
  reader.require(done.disk.value < kMaxDisks, "bad disk");
  reader.require(is_block_status(done.completion.status), "bad status of a disk request");
  return done;
}

}  // namespace

Bytes encode(const EpochInputs& inputs) {
  ByteWriter writer;
  writer.reserve(64 + inputs.environment.size() * 8);
  writer.put(inputs.length.sites);
  writer.put(inputs.boundary);
  writer.put(static_cast<std::int64_t>(inputs.clock.count()));
  writer.put(static_cast<std::uint32_t>(inputs.environment.size()));
  for (const std::uint64_t value : inputs.environment) writer.put(value);
  writer.put(static_cast<std::uint32_t>(inputs.completions.size()));
  for (const DiskCompletion& done : inputs.completions) {
    writer.put(static_cast<std::uint8_t>(done.disk.value));
    writer.put(done.completion.status);
    writer.put(done.completion.head);
  }
  writer.put(static_cast<std::uint32_t>(inputs.arrivals.size()));
  for (const Arrival& arrival : inputs.arrivals) {
    if (const auto* frame = std::get_if<FrameArrival>(&arrival)) {
      put_arrival(writer, ArrivalKind::kFrame, frame->nic.value, frame->frame);
    } else {
      const auto& input = std::get<ConsoleArrival>(arrival);
      put_arrival(writer, ArrivalKind::kConsole, input.console.value, input.bytes);
    }
  }
  return writer.take();
}

EpochInputs decode_epoch_inputs(ByteView bytes) {
  ByteReader reader("epoch inputs", bytes);
  EpochInputs inputs;
  inputs.length = {reader.take<std::uint64_t>()};
  reader.require(inputs.length.sites <= guest_abi::kMaxCount, "epoch too long");
  const auto boundary = reader.take<std::uint8_t>();
  reader.require(boundary <= static_cast<std::uint8_t>(EpochBoundary::kEnded), "bad boundary");
  inputs.boundary = static_cast<EpochBoundary>(boundary);
  inputs.clock = std::chrono::nanoseconds(reader.take<std::int64_t>());
  reader.require(inputs.clock.count() >= 0, "bad clock");
  inputs.environment.resize(reader.take_count(kMaxEnvironmentValues, sizeof(std::uint64_t)));
  for (std::uint64_t& value : inputs.environment) value = reader.take<std::uint64_t>();
  inputs.completions.resize(reader.take_count(kMaxCompletions, kCompletionBytes));
  for (DiskCompletion& done : inputs.completions) done = take_completion(reader);
  const std::size_t arrivals = reader.take_count(kMaxArrivals, kArrivalHeaderBytes);
  std::size_t room = kMaxArrivalBytes;
  for (std::size_t i = 0; i < arrivals; ++i) inputs.arrivals.push_back(take_arrival(reader, room));
  reader.require_end();
  return inputs;
}

}  // namespace pollux::vmm
