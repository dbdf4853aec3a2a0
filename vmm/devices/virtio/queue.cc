#include "vmm/devices/virtio/queue.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <bit>
#include <limits>
#include <string>
#include <utility>

namespace pollux::vmm {
namespace {

// Guest structures are little-endian (2.4.3) and so is every host this runs on.
static_assert(std::endian::native == std::endian::little);

// 2.7.5
constexpr std::uint16_t kNext = 1;
constexpr std::uint16_t kWrite = 2;
constexpr std::uint16_t kIndirect = 4;
// 2.7.6: the available ring's flags and index come before its entries; used_event follows them.
constexpr std::uint16_t kNoInterrupt = 1;
constexpr std::uint64_t kRingIndex = 2;
constexpr std::uint64_t kRingEntries = 4;
constexpr std::uint64_t kAvailableEntry = 2;
constexpr std::uint64_t kUsedEntry = 8;
constexpr std::uint64_t kEventBytes = 2;

[[noreturn]] void violated(const std::string& what) { throw DriverError(what); }

}  // namespace

struct Queue::Descriptor {
  std::uint64_t address;
  std::uint32_t length;
  std::uint16_t flags;
  std::uint16_t next;
};

namespace {

// Applies `copy` to the parts of the segments that lie in [offset, offset + length).
template <class Copy>
std::size_t for_parts(std::span<const Segment> segments, std::uint64_t offset, std::size_t length,
                      const Copy& copy) {
  std::size_t done = 0;
  for (const Segment& segment : segments) {
    if (done == length) break;
    if (offset >= segment.length) {
      offset -= segment.length;
      continue;
    }
    const auto part =
        static_cast<std::size_t>(std::min<std::uint64_t>(segment.length - offset, length - done));
    // A chain's segments were found to be RAM, which never goes away.
    POLLUX_ASSERT(copy(segment.address + offset, done, part));
    done += part;
    offset = 0;
  }
  return done;
}

}  // namespace

std::size_t copy_from_guest(const GuestMemory& memory, std::span<const Segment> segments,
                            std::uint64_t offset, MutableByteView into) {
  return for_parts(segments, offset, into.size(),
                   [&](GuestAddress address, std::size_t done, std::size_t part) {
                     return memory.read(address, into.subspan(done, part));
                   });
}

std::size_t copy_to_guest(GuestMemory& memory, std::span<const Segment> segments, std::uint64_t offset,
                          ByteView from) {
  return for_parts(segments, offset, from.size(),
                   [&](GuestAddress address, std::size_t done, std::size_t part) {
                     return memory.write(address, from.subspan(done, part));
                   });
}

Queue::Queue(GuestMemory& memory, std::uint16_t max_size) : memory_(memory), max_size_(max_size) {
  POLLUX_ASSERT(std::has_single_bit(max_size) && max_size <= kMaxQueueSize);
}

void Queue::set_addresses(GuestAddress descriptors, GuestAddress driver, GuestAddress device) {
  registers_.descriptors = descriptors;
  registers_.driver = driver;
  registers_.device = device;
}

void Queue::check_layout() const {
  const std::uint64_t size = registers_.size;
  if (size > max_size_ || !std::has_single_bit(size)) violated("queue size " + std::to_string(size));
  // 2.7: alignments 16, 2 and 4.
  if (registers_.descriptors.value % sizeof(Descriptor) != 0 || registers_.driver.value % 2 != 0 ||
      registers_.device.value % 4 != 0) {
    violated("misaligned queue");
  }
  const bool in_ram = memory_.view(registers_.descriptors, size * sizeof(Descriptor)) &&
                      memory_.view(registers_.driver, kRingEntries + size * kAvailableEntry + kEventBytes) &&
                      memory_.view(registers_.device, kRingEntries + size * kUsedEntry + kEventBytes);
  if (!in_ram) violated("queue outside of memory");
}

void Queue::enable(bool event_index, bool indirect) {
  check_layout();
  event_index_ = event_index;
  indirect_ = indirect;
  next_available_ = 0;
  next_used_ = 0;
  asked_at_ = std::nullopt;
  signalled_ = 0;
  registers_.ready = true;
}

void Queue::disable() { registers_.ready = false; }

void Queue::reset() {
  registers_ = {};
  next_available_ = 0;
  next_used_ = 0;
}

void Queue::restore(const QueueRegisters& registers, std::uint16_t next_available, std::uint16_t next_used,
                    std::optional<std::uint16_t> asked_at, bool event_index, bool indirect) {
  registers_ = registers;
  if (registers.ready) check_layout();
  event_index_ = event_index;
  indirect_ = indirect;
  next_available_ = next_available;
  next_used_ = next_used;
  asked_at_ = asked_at;
  signalled_ = next_used;
}

// The driver's vCPU stores ring indices while we load them, and the other way round. Sequentially consistent
// because of 2.7.7.2 and 2.7.10.1: each side stores its own index, then loads the other's, and one of them
// must see the other's store.
std::uint16_t Queue::load(GuestAddress address) const {
  const auto view = memory_.view(address, sizeof(std::uint16_t));
  POLLUX_ASSERT(view.has_value());  // part of a checked layout
  auto* word = reinterpret_cast<std::uint16_t*>(const_cast<std::byte*>(view->data()));
  return std::atomic_ref(*word).load(std::memory_order_seq_cst);
}

void Queue::store(GuestAddress address, std::uint16_t value) {
  const auto view = memory_.writable_view(address, sizeof value);
  POLLUX_ASSERT(view.has_value());
  std::atomic_ref(*reinterpret_cast<std::uint16_t*>(view->data())).store(value, std::memory_order_seq_cst);
}

std::uint16_t Queue::waiting() const {
  const auto count = static_cast<std::uint16_t>(load(registers_.driver + kRingIndex) - next_available_);
  if (count > registers_.size) violated("available index runs ahead by " + std::to_string(count));
  return count;
}

void Queue::ask_for_notification() {
  if (!event_index_ || asked_at_ == next_available_) return;
  // avail_event, behind the used ring's entries (2.7.10).
  store(registers_.device + kRingEntries + registers_.size * kUsedEntry, next_available_);
  asked_at_ = next_available_;
}

std::optional<Chain> Queue::pop() {
  if (waiting() == 0) {
    ask_for_notification();
    // The driver may have added one between our look and our asking.
    if (waiting() == 0) return std::nullopt;
  }
  const std::uint64_t slot = next_available_ % registers_.size;
  Chain chain = chain_at(load(registers_.driver + kRingEntries + slot * kAvailableEntry));
  ++next_available_;
  return chain;
}

void Queue::unpop(std::uint16_t count) {
  next_available_ = static_cast<std::uint16_t>(next_available_ - count);
}

Queue::Descriptor Queue::descriptor_at(GuestAddress table, std::uint32_t index) const {
  // One copy, so that what is checked is what is used, whatever a vCPU writes meanwhile.
  Descriptor descriptor;
  const bool read = memory_.read(table + index * sizeof descriptor, mutable_bytes_of(descriptor));
  POLLUX_ASSERT(read);  // callers check the table
  return descriptor;
}

Chain Queue::chain_at(std::uint16_t head) const {
  Chain chain;
  chain.head = head;
  std::uint16_t index = head;
  // A chain that does not end within the queue's size has a loop (2.7.5.2).
  for (std::uint32_t steps = 0; steps < registers_.size; ++steps) {
    if (index >= registers_.size) violated("descriptor index " + std::to_string(index));
    const Descriptor descriptor = descriptor_at(registers_.descriptors, index);
    if (descriptor.flags & kIndirect) {
      append_indirect(chain, descriptor);
      return chain;
    }
    append(chain, descriptor);
    if (!(descriptor.flags & kNext)) return chain;
    index = descriptor.next;
  }
  violated("descriptor loop");
}

// 2.7.5.3: ends the chain. The write flag of the descriptor that refers to the table means nothing.
void Queue::append_indirect(Chain& chain, const Descriptor& descriptor) const {
  if (!indirect_) violated("indirect descriptor without the feature");
  if (descriptor.flags & kNext) violated("indirect descriptor with a next one");
  const std::uint32_t entries = descriptor.length / sizeof(Descriptor);
  if (entries == 0 || descriptor.length % sizeof(Descriptor) != 0) violated("indirect table size");
  if (!memory_.view({descriptor.address}, descriptor.length)) violated("indirect table outside of memory");
  std::uint32_t index = 0;
  for (std::uint32_t steps = 0; steps < std::min<std::uint32_t>(entries, kMaxQueueSize); ++steps) {
    const Descriptor entry = descriptor_at({descriptor.address}, index);
    if (entry.flags & kIndirect) violated("nested indirect descriptor");
    append(chain, entry);
    if (!(entry.flags & kNext)) return;
    index = entry.next;
    if (index >= entries) violated("indirect descriptor index " + std::to_string(index));
  }
  violated("indirect descriptor loop");
}

void Queue::append(Chain& chain, const Descriptor& descriptor) const {
  const Segment segment{{descriptor.address}, descriptor.length};
  if (segment.length == 0) violated("empty buffer");
  if (!memory_.view(segment.address, segment.length)) violated("buffer outside of memory");
  const bool writable = (descriptor.flags & kWrite) != 0;
  if (!writable && !chain.writable.empty()) violated("readable buffer behind a writable one");  // 2.7.4.2
  (writable ? chain.writable : chain.readable).push_back(segment);
  (writable ? chain.writable_bytes : chain.readable_bytes) += segment.length;
  // 2.7.5.2: no more than 2^32 bytes in all.
  if (chain.readable_bytes + chain.writable_bytes > std::numeric_limits<std::uint32_t>::max()) {
    violated("chain longer than 4 GiB");
  }
}

void Queue::push_used(std::span<const UsedEntry> entries) {
  for (const UsedEntry& entry : entries) {
    const std::array<std::uint32_t, 2> element{entry.head, entry.written};
    const std::uint64_t slot = next_used_ % registers_.size;
    const bool written =
        memory_.write(registers_.device + kRingEntries + slot * kUsedEntry, bytes_of(element));
    POLLUX_ASSERT(written);
    ++next_used_;
  }
  store(registers_.device + kRingIndex, next_used_);
}

void Queue::push_used(std::uint16_t head, std::uint32_t written) {
  const UsedEntry entry{head, written};
  push_used({&entry, 1});
}

bool Queue::take_interrupt_request() {
  const std::uint16_t before = std::exchange(signalled_, next_used_);
  if (before == next_used_) return false;
  if (!event_index_) return (load(registers_.driver) & kNoInterrupt) == 0;
  // Whether used_event, behind the available ring's entries, was passed since (2.7.7.2).
  const std::uint16_t event = load(registers_.driver + kRingEntries + registers_.size * kAvailableEntry);
  const auto past_event = static_cast<std::uint16_t>(next_used_ - event - 1);
  return past_event < static_cast<std::uint16_t>(next_used_ - before);
}

}  // namespace pollux::vmm
