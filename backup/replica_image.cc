#include "backup/replica_image.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>

#include "base/error.h"

namespace pollux::backup {

using protocol::DiskOperation;
using protocol::DiskOperationKind;
using protocol::PageRun;
using protocol::ProtocolError;

std::optional<std::string> ReplicaImage::mismatch(const vmm::MachineConfig& config, vmm::Backends& backends) {
  if (config.disks.size() != backends.disk_count()) {
    return fmt::format("the machine has {} disk(s), this backup was given {} with --disk", config.disks.size(),
                       backends.disk_count());
  }
  if (config.nics.size() != backends.nic_count()) {
    return fmt::format("the machine has {} NIC(s), this backup was given {} with --net", config.nics.size(),
                       backends.nic_count());
  }
  for (std::uint32_t i = 0; i < backends.disk_count(); ++i) {
    const vmm::Image& image = backends.disk({i});
    if (image.size() != config.disks[i].size) {
      return fmt::format("disk {} has {} bytes on the primary, {} here has {}", i, config.disks[i].size, image.path(),
                         image.size());
    }
    if (image.read_only()) return fmt::format("{} is read-only here: a backup must be able to write it", image.path());
  }
  return std::nullopt;
}

ReplicaImage::ReplicaImage(vmm::MachineConfig config, vmm::Backends& backends)
    : config_(std::move(config)),
      backends_(backends),
      memory_(std::make_unique<vmm::GuestMemory>(config_.memory_bytes)) {
  for (const auto& region : memory_->regions()) {
    ram_.push_back({region.start.gfn().value, region.bytes.size() >> kPageShift});
  }
}

Bytes ReplicaImage::digests(const protocol::DiskDigestRequest& request) {
  vmm::Image& image = backends_.disk({request.disk.value});
  const std::uint64_t blocks = (image.size() + protocol::kDigestBlockBytes - 1) / protocol::kDigestBlockBytes;
  if (request.first >= blocks || request.count > blocks - request.first) {
    throw ProtocolError("digest request beyond the end of " + image.path());
  }
  Bytes answer;
  answer.reserve(request.count * protocol::kDigestBytes);
  Bytes block(protocol::kDigestBlockBytes);
  for (std::uint64_t i = request.first; i < request.first + request.count; ++i) {
    const std::uint64_t offset = i * protocol::kDigestBlockBytes;
    const MutableByteView part = MutableByteView(block).first(std::min(protocol::kDigestBlockBytes, image.size() - offset));
    if (!image.read(offset, part)) throw Error("cannot read " + image.path());
    const protocol::BlockDigest digest = protocol::digest_block(part);
    answer.insert(answer.end(), digest.begin(), digest.end());
  }
  return answer;
}

void ReplicaImage::write_blocks(const protocol::DiskBlocks& header, ByteView body) {
  for (const protocol::DiskExtent& extent : header.extents) {
    check_range(header.disk, extent.offset, extent.length);
    const DiskOperationKind kind = extent.zero ? DiskOperationKind::kZero : DiskOperationKind::kWrite;
    const std::uint64_t length = extent.zero ? 0 : extent.length;
    perform({header.disk, kind, extent.offset, extent.length}, body.first(length));
    body = body.subspan(length);
  }
}

void ReplicaImage::write_pages(const protocol::SyncPages& header, ByteView body) {
  check_runs(header.runs);
  store_pages(header.runs, body);
}

void ReplicaImage::set_state(Bytes state) { state_ = std::move(state); }

void ReplicaImage::check(const protocol::EpochPages& header) const { check_runs(header.runs); }

void ReplicaImage::check(const protocol::EpochDiskWrites& header) const {
  for (const DiskOperation& operation : header.operations) check_range(operation.disk, operation.offset, operation.length);
}

// A run must lie within one region of RAM.
void ReplicaImage::check_runs(const std::vector<PageRun>& runs) const {
  for (const PageRun& run : runs) {
    const bool fits = std::any_of(ram_.begin(), ram_.end(), [&](const Ram& ram) {
      return run.first.value >= ram.first && run.first.value - ram.first <= ram.pages &&
             run.count <= ram.pages - (run.first.value - ram.first);
    });
    if (!fits) throw ProtocolError(fmt::format("pages {}+{} are not RAM of this machine", run.first.value, run.count));
  }
}

void ReplicaImage::check_range(protocol::DiskId disk, std::uint64_t offset, std::uint64_t length) const {
  if (disk.value >= backends_.disk_count()) throw ProtocolError(fmt::format("disk {} does not exist", disk.value));
  const std::uint64_t size = backends_.disk({disk.value}).size();
  if (offset > size || length > size - offset) {
    throw ProtocolError(fmt::format("disk {}: bytes {}+{} lie beyond its end", disk.value, offset, length));
  }
}

void ReplicaImage::store_pages(const std::vector<PageRun>& runs, ByteView body) {
  for (const PageRun& run : runs) {
    for (std::uint64_t i = 0; i < run.count; ++i) {
      const vmm::Gfn gfn{run.first.value + i};
      if (run.zero) {
        // Most are zero already: reading one leaves it unallocated, writing would not.
        const bool already = is_zero(std::as_const(*memory_).page(gfn));
        if (!already) std::memset(memory_->writable_page(gfn).data(), 0, kPageSize);
      } else {
        std::memcpy(memory_->writable_page(gfn).data(), body.data(), kPageSize);
        body = body.subspan(kPageSize);
      }
    }
  }
  POLLUX_ASSERT(body.empty());
}

void ReplicaImage::perform(const DiskOperation& operation, ByteView data) {
  vmm::Image& image = backends_.disk({operation.disk.value});
  bool done = true;
  switch (operation.kind) {
    case DiskOperationKind::kWrite: done = image.write(operation.offset, data); break;
    case DiskOperationKind::kDiscard:
    case DiskOperationKind::kZero: done = image.discard(operation.offset, operation.length); break;
    case DiskOperationKind::kFlush: break;  // asked for by make_durable(), once an epoch
  }
  if (!done) throw Error("cannot write " + image.path());
}

void ReplicaImage::apply(EpochRecord record) {
  for (const auto& [header, body] : record.pages) store_pages(header.runs, body);
  for (const auto& [header, body] : record.disk_writes) {
    ByteView rest(body);
    for (const DiskOperation& operation : header.operations) {
      const std::uint64_t length = operation.kind == DiskOperationKind::kWrite ? operation.length : 0;
      perform(operation, rest.first(length));
      rest = rest.subspan(length);
    }
    POLLUX_ASSERT(rest.empty());
  }
  state_ = std::move(record.state);
}

void ReplicaImage::make_durable() {
  for (std::uint32_t i = 0; i < backends_.disk_count(); ++i) {
    vmm::Image& image = backends_.disk({i});
    if (!image.sync()) throw Error("cannot make " + image.path() + " durable");
  }
}

}  // namespace pollux::backup
