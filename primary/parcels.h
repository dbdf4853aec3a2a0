// What the engine has collected, as messages for the backups.
#pragma once

#include <memory>
#include <vector>

#include "primary/holding_gate.h"
#include "primary/page_batch.h"
#include "primary/shipper.h"

namespace pollux::primary {

[[nodiscard]] Parcel sync_pages_parcel(std::shared_ptr<const PageBatch> batch);
[[nodiscard]] Parcel epoch_pages_parcel(protocol::EpochId epoch, std::shared_ptr<const PageBatch> batch);

// The epoch's disk operations in order, split into messages within the protocol's bounds.
[[nodiscard]] std::vector<Parcel> epoch_disk_parcels(std::shared_ptr<const HeldEpoch> held);
// The same as part of a later epoch's record.
[[nodiscard]] std::vector<Parcel> epoch_disk_parcels(protocol::EpochId epoch, std::shared_ptr<const HeldEpoch> held);

// Lockstep: an epoch's encoded inputs or digest, in pieces.
[[nodiscard]] std::vector<Parcel> epoch_inputs_parcels(protocol::EpochId epoch, std::shared_ptr<const Bytes> inputs);
[[nodiscard]] std::vector<Parcel> epoch_digest_parcels(protocol::EpochId epoch, std::shared_ptr<const Bytes> digest);

[[nodiscard]] Parcel message_parcel(protocol::Message message);
// The machine's state at the end of `epoch` in pieces, the last of which is the body of `end`, a SyncEnd or EpochClose of that
// epoch; its `state_bytes` is filled in here.
[[nodiscard]] std::vector<Parcel> state_parcels(protocol::SyncEnd end, std::shared_ptr<const Bytes> state);
[[nodiscard]] std::vector<Parcel> state_parcels(protocol::EpochClose end, std::shared_ptr<const Bytes> state);

}  // namespace pollux::primary
