#include "primary/parcels.h"

#include <algorithm>

#include "base/error.h"

namespace pollux::primary {
namespace {

protocol::DiskOperationKind wire_kind(DiskOperationKind kind) {
  switch (kind) {
    case DiskOperationKind::kWrite: return protocol::DiskOperationKind::kWrite;
    case DiskOperationKind::kDiscard: return protocol::DiskOperationKind::kDiscard;
    case DiskOperationKind::kFlush: return protocol::DiskOperationKind::kFlush;
  }
  POLLUX_ASSERT(false);
}

// Fills messages with operations; a new one begins when the next piece would not fit.
class DiskParcels {
 public:
  DiskParcels(protocol::EpochId epoch, std::shared_ptr<const HeldEpoch> held) : epoch_(epoch), held_(std::move(held)) {
    begin();
  }

  void add(const HeldDiskOperation& operation) {
    if (operation.kind != DiskOperationKind::kWrite) {
      append(operation, operation.offset, operation.length, {});
      return;
    }
    for (std::uint64_t done = 0; done < operation.length;) {
      if (room() == 0) finish();
      const std::uint64_t length = std::min<std::uint64_t>(operation.length - done, room());
      append(operation, operation.offset + done, length, ByteView(*operation.data).subspan(done, length));
      done += length;
    }
  }

  std::vector<Parcel> take() {
    finish();
    return std::move(parcels_);
  }

 private:
  [[nodiscard]] std::uint64_t room() const { return protocol::kMaxBodyBytes - bytes_; }

  void append(const HeldDiskOperation& operation, std::uint64_t offset, std::uint64_t length, ByteView data) {
    if (message_.operations.size() == protocol::kMaxDiskOperationsPerMessage) finish();
    message_.operations.push_back({{operation.disk.value}, wire_kind(operation.kind), offset, length});
    if (!data.empty()) body_.push_back(data);
    bytes_ += data.size();
  }

  void begin() {
    message_ = {epoch_, {}};
    body_.clear();
    bytes_ = 0;
  }

  void finish() {
    if (!message_.operations.empty()) parcels_.push_back({std::move(message_), std::move(body_), held_});
    begin();
  }

  const protocol::EpochId epoch_;
  std::shared_ptr<const HeldEpoch> held_;
  protocol::EpochDiskWrites message_;
  std::vector<ByteView> body_;
  std::uint64_t bytes_ = 0;
  std::vector<Parcel> parcels_;
};

template <class Piece>
std::vector<Parcel> pieces(protocol::EpochId epoch, std::shared_ptr<const Bytes> bytes) {
  std::vector<Parcel> parcels;
  for (std::size_t at = 0; at < bytes->size(); at += protocol::kMaxBodyBytes) {
    const ByteView body = ByteView(*bytes).subspan(at, std::min(protocol::kMaxBodyBytes, bytes->size() - at));
    parcels.push_back({Piece{epoch, static_cast<std::uint32_t>(body.size())}, {body}, bytes});
  }
  return parcels;
}

template <class End>
std::vector<Parcel> with_last_piece(End end, std::shared_ptr<const Bytes> state) {
  POLLUX_ASSERT(!state->empty() && state->size() <= protocol::kMaxStateBytes);
  std::vector<Parcel> parcels = pieces<protocol::MachineState>(end.epoch, std::move(state));
  end.state_bytes = std::get<protocol::MachineState>(parcels.back().message).bytes;
  parcels.back().message = end;
  return parcels;
}

}  // namespace

Parcel sync_pages_parcel(std::shared_ptr<const PageBatch> batch) {
  return {protocol::SyncPages{batch->runs}, batch->body, batch};
}

Parcel epoch_pages_parcel(protocol::EpochId epoch, std::shared_ptr<const PageBatch> batch) {
  return {protocol::EpochPages{epoch, batch->runs}, batch->body, batch};
}

std::vector<Parcel> epoch_disk_parcels(std::shared_ptr<const HeldEpoch> held) {
  const protocol::EpochId epoch = held->epoch;
  return epoch_disk_parcels(epoch, std::move(held));
}

std::vector<Parcel> epoch_disk_parcels(protocol::EpochId epoch, std::shared_ptr<const HeldEpoch> held) {
  DiskParcels parcels(epoch, held);
  for (const HeldDiskOperation& operation : held->disk_operations) parcels.add(operation);
  return parcels.take();
}

std::vector<Parcel> epoch_inputs_parcels(protocol::EpochId epoch, std::shared_ptr<const Bytes> inputs) {
  return pieces<protocol::EpochInputs>(epoch, std::move(inputs));
}

std::vector<Parcel> epoch_digest_parcels(protocol::EpochId epoch, std::shared_ptr<const Bytes> digest) {
  return pieces<protocol::EpochDigest>(epoch, std::move(digest));
}

Parcel message_parcel(protocol::Message message) { return {std::move(message), {}, nullptr}; }

std::vector<Parcel> state_parcels(protocol::SyncEnd end, std::shared_ptr<const Bytes> state) {
  return with_last_piece(end, std::move(state));
}

std::vector<Parcel> state_parcels(protocol::EpochClose end, std::shared_ptr<const Bytes> state) {
  return with_last_piece(end, std::move(state));
}

}  // namespace pollux::primary
