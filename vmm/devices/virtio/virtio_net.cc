#include "vmm/devices/virtio/virtio_net.h"

#include <algorithm>
#include <cstring>

#include "base/error.h"

namespace pollux::vmm {
namespace {

// 5.1.3
constexpr std::uint64_t kMac = feature_bit(5);
constexpr std::uint64_t kMergeReceiveBuffers = feature_bit(15);
constexpr std::uint64_t kStatus = feature_bit(16);

constexpr std::uint16_t kLinkUp = 1;
constexpr std::size_t kEthernetHeader = 14;

// struct virtio_net_hdr (5.1.6). Without offloads all but the last field are zero on both ways.
struct NetHeader {
  std::uint8_t flags = 0;
  std::uint8_t gso_type = 0;
  std::uint16_t header_length = 0;
  std::uint16_t gso_size = 0;
  std::uint16_t checksum_start = 0;
  std::uint16_t checksum_offset = 0;
  std::uint16_t buffers = 1;
};
static_assert(sizeof(NetHeader) == 12);

bool valid_length(std::size_t frame) { return frame >= kEthernetHeader && frame <= kMaxFrame; }

template <class Address>
std::vector<Address> addresses_from(capnp::List<capnp::Data>::Reader list) {
  if (list.size() > AddressLearner::kMaxAddresses) throw Error("restore NIC: too many addresses");
  std::vector<Address> addresses;
  for (const auto data : list) {
    Address address;
    if (data.size() != address.size()) throw Error("restore NIC: address length");
    std::memcpy(address.data(), data.begin(), address.size());
    addresses.push_back(address);
  }
  return addresses;
}

template <class Address>
void addresses_into(capnp::List<capnp::Data>::Builder list, const std::vector<Address>& addresses) {
  for (unsigned i = 0; i < list.size(); ++i) {
    list.set(i, capnp::Data::Reader(addresses[i].data(), addresses[i].size()));
  }
}

}  // namespace

VirtioNet::VirtioNet(NicIndex index, const NicConfig& config, OutputGate& output)
    : index_(index), nic_(config), output_(output) {
  std::memcpy(config_space_.data(), nic_.mac.data(), nic_.mac.size());  // 5.1.4
  std::memcpy(config_space_.data() + nic_.mac.size(), &kLinkUp, sizeof kLinkUp);
}

std::uint64_t VirtioNet::features() const { return kMac | kMergeReceiveBuffers | kStatus; }

std::span<const std::uint16_t> VirtioNet::queue_sizes() const {
  static constexpr std::array kSizes = {kQueueSize, kQueueSize};
  return kSizes;
}

bool VirtioNet::serve(QueueIndex index) {
  return index == kReceiveQueue ? serve_receive() : serve_transmit();
}

void VirtioNet::reset() {
  waiting_.clear();
  waiting_bytes_ = 0;
}

void VirtioNet::restore_waiting(std::deque<Bytes> frames) {
  std::size_t bytes = 0;
  for (const Bytes& frame : frames) bytes += frame.size();
  if (frames.size() > kMaxWaitingFrames || bytes > kMaxWaitingBytes) throw Error("restore NIC: too many frames wait");
  waiting_ = std::move(frames);
  waiting_bytes_ = bytes;
}

// --- Transmit (5.1.6.2) ---

bool VirtioNet::serve_transmit() {
  Queue& queue = transport().queue(kTransmitQueue);
  bool more = true;
  for (unsigned i = 0; more && i < kFramesPerServe; ++i) {
    const auto chain = queue.pop();
    if (!chain) {
      more = false;
    } else if (!transmit(*chain)) {
      queue.unpop(1);  // stays in the ring, and so in the saved state, until the gate calls
      more = false;
    }
  }
  transport().signal(kTransmitQueue);
  return more;
}

// False: the gate has no room.
bool VirtioNet::transmit(const Chain& chain) {
  if (!chain.writable.empty()) throw DriverError("transmit request with a writable buffer");
  if (chain.readable_bytes < sizeof(NetHeader)) throw DriverError("transmit request without a whole header");
  const std::uint64_t length = chain.readable_bytes - sizeof(NetHeader);
  if (valid_length(length)) {
    frame_.resize(length);
    copy_from_guest(transport().memory(), chain.readable, sizeof(NetHeader), frame_);
    if (!output_.transmit(index_, frame_)) return false;
    addresses_.observe(frame_);
    ++counters_.transmitted;
  } else {
    ++counters_.transmit_dropped;
  }
  transport().queue(kTransmitQueue).push_used(chain.head, 0);
  return true;
}

// --- Receive (5.1.6.4) ---

void VirtioNet::deliver(Bytes frame) {
  transport().locked([&] {
    if (transport().live(kReceiveQueue) && valid_length(frame.size()) &&
        waiting_.size() < kMaxWaitingFrames && waiting_bytes_ + frame.size() <= kMaxWaitingBytes) {
      waiting_bytes_ += frame.size();
      waiting_.push_back(std::move(frame));
    } else {
      ++counters_.receive_dropped;
    }
  });
  transport().notify(kReceiveQueue);
}

bool VirtioNet::serve_receive() {
  bool more = true;
  for (unsigned i = 0; more && i < kFramesPerServe; ++i) {
    if (waiting_.empty()) {
      more = false;
      break;
    }
    const Placement placement = place(waiting_.front());
    more = placement != Placement::kNoBuffer;
    if (placement == Placement::kPlaced) ++counters_.received;
    if (placement == Placement::kTooLarge) ++counters_.receive_dropped;
    if (!more) break;
    waiting_bytes_ -= waiting_.front().size();
    waiting_.pop_front();
  }
  transport().signal(kReceiveQueue);
  return more;
}

// Takes as many buffers as the frame needs, or none.
VirtioNet::Placement VirtioNet::place(ByteView frame) {
  Queue& queue = transport().queue(kReceiveQueue);
  const bool merge = transport().negotiated(kMergeReceiveBuffers);
  const std::uint16_t limit = merge ? std::min(kMaxMergedBuffers, queue.registers().size) : std::uint16_t{1};
  const std::uint64_t wanted = sizeof(NetHeader) + frame.size();
  std::vector<Chain> chains;
  std::uint64_t space = 0;
  while (space < wanted && chains.size() < limit) {
    auto chain = queue.pop();
    if (!chain) break;
    if (!chain->readable.empty()) throw DriverError("receive buffer that is not writable");
    // 5.1.6.3.1
    if (chain->writable_bytes < sizeof(NetHeader)) throw DriverError("receive buffer smaller than a header");
    space += chain->writable_bytes;
    chains.push_back(std::move(*chain));
  }
  if (space < wanted) {
    queue.unpop(static_cast<std::uint16_t>(chains.size()));
    return chains.size() == limit ? Placement::kTooLarge : Placement::kNoBuffer;
  }
  fill(chains, frame);
  return Placement::kPlaced;
}

void VirtioNet::fill(std::span<const Chain> chains, ByteView frame) {
  NetHeader header;
  header.buffers = static_cast<std::uint16_t>(chains.size());
  std::vector<UsedEntry> used;
  std::uint64_t offset = copy_to_guest(transport().memory(), chains.front().writable, 0, bytes_of(header));
  for (const Chain& chain : chains) {
    const std::size_t part = copy_to_guest(transport().memory(), chain.writable, offset, frame);
    frame = frame.subspan(part);
    used.push_back({chain.head, static_cast<std::uint32_t>(offset + part)});
    offset = 0;
  }
  // All at once: the driver takes the frame's other buffers as soon as it sees the first.
  transport().queue(kReceiveQueue).push_used(used);
}

// --- What the machine asks ---

std::vector<Bytes> VirtioNet::announcement() const { return announcement_frames(nic_.mac, addresses_); }

NetCounters VirtioNet::counters() const {
  NetCounters counters;
  transport().locked([&] { counters = counters_; });
  return counters;
}

void VirtioNet::save(schema::VirtioDeviceState::Function::Builder state) const {
  auto net = state.initNet();
  addresses_into(net.initIpv4(static_cast<unsigned>(addresses_.ipv4().size())), addresses_.ipv4());
  addresses_into(net.initIpv6(static_cast<unsigned>(addresses_.ipv6().size())), addresses_.ipv6());
}

void VirtioNet::restore(schema::VirtioDeviceState::Function::Reader state) {
  if (!state.isNet()) throw Error("restore NIC: state of another device");
  reset();
  addresses_.restore(addresses_from<Ipv4Address>(state.getNet().getIpv4()),
                     addresses_from<Ipv6Address>(state.getNet().getIpv6()));
}

}  // namespace pollux::vmm
