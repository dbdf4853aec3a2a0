// A key-value server over UDP (kv_protocol.h), on the first NIC. ip=A.B.C.D (10.0.0.2); requests=N: powers off after
// answering at least as many (0: never); journal=1: writes are on the first disk before they are answered, and those found there
// at the start are carried out again; else all is in memory.
#include "tests/guests/lockstep/kv_protocol.h"
#include "vmm/guest/runtime/block.h"
#include "vmm/guest/runtime/guest.h"
#include "vmm/guest/runtime/net.h"

using namespace pollux::guest;
using namespace pollux::guests;

namespace {

class Journal {
 public:
  explicit Journal(unsigned disk)
      : disk_(disk),
        records_(static_cast<KvJournalRecord*>(allocate_pages(kMaxKvBatch * kSectorBytes))),
        chunk_(static_cast<KvJournalRecord*>(allocate_pages(kChunk * kSectorBytes))) {}

  // Calls `carry_out` with what a server before this one wrote, the oldest first. Of the batch that it did not see flushed there
  // may be some records and not others: from the first that is missing on nobody was answered, and they are removed.
  template <class CarryOut>
  void recover(const CarryOut& carry_out) {
    const std::uint64_t last = last_number();
    number_ = whole_until(last);
    std::uint64_t next = last > disk_.sectors() ? last - disk_.sectors() + 1 : 1;
    while (next <= number_) {
      const std::uint64_t count = read_chunk((next - 1) % disk_.sectors(), number_ - next + 1);
      for (std::uint64_t i = 0; i < count; ++i, ++next) {
        require(is_record(chunk_[i]) && chunk_[i].number == next, "journal: a record is missing");
        carry_out(chunk_[i]);
      }
    }
    remove_after(number_, last);
  }

  void add(const KvRequest& request, const std::uint8_t* value, std::uint16_t value_bytes) {
    KvJournalRecord& record = records_[count_++];
    record = {};
    record.magic = kKvJournalMagic;
    record.operation = request.operation;
    record.key_bytes = request.key_bytes;
    record.value_bytes = value_bytes;
    record.number = ++number_;
    record.client = request.client;
    record.sequence = request.sequence;
    memcpy(record.key, request.key, request.key_bytes);
    memcpy(record.value, value, value_bytes);
    record.hash = kv_hash(reinterpret_cast<const std::uint8_t*>(&record), offsetof(KvJournalRecord, hash));
  }

  // What was added is durable.
  void commit() {
    if (count_ == 0) return;
    BlockRequest requests[kMaxKvBatch];
    for (unsigned i = 0; i < count_; ++i) {
      requests[i] = {BlockRequest::Operation::kWrite, (records_[i].number - 1) % disk_.sectors(), &records_[i], kSectorBytes};
      disk_.submit(requests[i]);
    }
    for (unsigned i = 0; i < count_; ++i) {
      disk_.wait(requests[i]);
      require(!requests[i].failed, "journal: write error");
    }
    require(disk_.flush(), "journal: flush error");
    read_back();
    count_ = 0;
  }

 private:
  static constexpr std::uint64_t kChunk = 512;      // records that are read at a time
  static constexpr std::uint64_t kReadBack = 128;  // so long ago that a record has left all caches above the image

  // One record of long ago is what it was, if the disk can be read now: one that cannot costs nobody anything.
  void read_back() {
    if (number_ <= kReadBack) return;
    const std::uint64_t number = number_ - kReadBack;
    if (!disk_.read((number - 1) % disk_.sectors(), chunk_, kSectorBytes)) {
      ++unread_;
      return;
    }
    require(is_record(chunk_[0]) && chunk_[0].number == number, "journal: another record was read than was written");
  }

  static bool is_record(const KvJournalRecord& record) {
    return record.magic == kKvJournalMagic && record.number > 0 && record.key_bytes <= kMaxKvKey && record.value_bytes <= kMaxKvValue &&
           record.hash == kv_hash(reinterpret_cast<const std::uint8_t*>(&record), offsetof(KvJournalRecord, hash));
  }

  // Up to `most` records from a sector on, to the disk's end at most. How many.
  std::uint64_t read_chunk(std::uint64_t sector, std::uint64_t most) {
    std::uint64_t count = disk_.sectors() - sector;
    if (count > most) count = most;
    if (count > kChunk) count = kChunk;
    require(disk_.read(sector, chunk_, count * kSectorBytes), "journal: read error");
    return count;
  }

  // 0: there is none.
  std::uint64_t last_number() {
    std::uint64_t last = 0;
    for (std::uint64_t sector = 0; sector < disk_.sectors();) {
      const std::uint64_t count = read_chunk(sector, kChunk);
      for (std::uint64_t i = 0; i < count; ++i, ++sector) {
        const KvJournalRecord& record = chunk_[i];
        const bool here = is_record(record) && (record.number - 1) % disk_.sectors() == sector;
        if (here && record.number > last) last = record.number;
      }
    }
    return last;
  }

  // The last number up to which none is missing: only of the last batch one can be.
  std::uint64_t whole_until(std::uint64_t last) {
    for (std::uint64_t number = last > kMaxKvBatch ? last - kMaxKvBatch + 1 : 1; number <= last; ++number) {
      (void)read_chunk((number - 1) % disk_.sectors(), 1);
      if (!is_record(chunk_[0]) || chunk_[0].number != number) return number - 1;
    }
    return last;
  }

  void remove_after(std::uint64_t number, std::uint64_t last) {
    if (number == last) return;
    memset(chunk_, 0, kSectorBytes);
    for (std::uint64_t one = number + 1; one <= last; ++one) {
      require(disk_.write((one - 1) % disk_.sectors(), chunk_, kSectorBytes), "journal: write error");
    }
    require(disk_.flush(), "journal: flush error");
  }

  BlockDevice disk_;
  KvJournalRecord* records_;
  KvJournalRecord* chunk_;
  unsigned count_ = 0;
  std::uint64_t number_ = 0;
  std::uint64_t unread_ = 0;  // batches
};
Journal* journal = nullptr;

// Open addressing, never more than half full; nothing is ever removed.
template <class Entry, std::size_t kSlots>
class Table {
 public:
  // The entry `matches` says is the one, or the free one that would become it; none free: null.
  template <class Matches>
  Entry* find(std::uint64_t hash, const Matches& matches) {
    std::size_t slot = hash % kSlots;
    while (entries_[slot].used && !matches(entries_[slot])) slot = (slot + 1) % kSlots;
    Entry& entry = entries_[slot];
    return entry.used || count_ < kSlots / 2 ? &entry : nullptr;
  }
  void add(Entry& entry) {
    entry.used = true;
    ++count_;
  }

 private:
  Entry entries_[kSlots];
  std::size_t count_ = 0;
};

struct Pair {
  bool used;
  std::uint8_t key_bytes;
  std::uint16_t value_bytes;
  std::uint8_t key[kMaxKvKey];
  std::uint8_t value[kMaxKvValue];
};
Table<Pair, 16384> pairs;

struct Client {
  bool used;
  std::uint64_t id;
  KvResponse last;  // its sequence: the last request carried out
};
Table<Client, 1024> clients;

bool well_formed(const KvRequest& request) {
  const auto operation = static_cast<unsigned>(request.operation);
  return operation >= 1 && operation <= 3 && request.key_bytes > 0 && request.key_bytes <= kMaxKvKey &&
         request.value_bytes <= kMaxKvValue;
}

// As Table::find().
Pair* pair_of(const std::uint8_t* key, std::uint8_t key_bytes) {
  return pairs.find(kv_hash(key, key_bytes), [&](const Pair& p) { return p.key_bytes == key_bytes && memcmp(p.key, key, key_bytes) == 0; });
}

void carry_out(const KvRequest& request, KvResponse& response) {
  Pair* pair = pair_of(request.key, request.key_bytes);
  if (pair == nullptr || (!pair->used && request.operation == KvOperation::kGet)) {
    response.status = request.operation == KvOperation::kGet ? KvStatus::kMissing : KvStatus::kFull;
    return;
  }
  std::uint64_t number = 0;
  if (!pair->used) {
    pairs.add(*pair);
    pair->key_bytes = request.key_bytes;
    memcpy(pair->key, request.key, request.key_bytes);
    pair->value_bytes = sizeof number;  // of zeros, until it is set
  }
  switch (request.operation) {
    case KvOperation::kPut:
      pair->value_bytes = request.value_bytes;
      memcpy(pair->value, request.value, request.value_bytes);
      if (journal != nullptr) journal->add(request, pair->value, pair->value_bytes);
      return;
    case KvOperation::kGet: break;
    case KvOperation::kIncrement:
      if (pair->value_bytes != sizeof number) {
        response.status = KvStatus::kBad;
        return;
      }
      memcpy(&number, pair->value, sizeof number);
      ++number;
      memcpy(pair->value, &number, sizeof number);
      if (journal != nullptr) journal->add(request, pair->value, pair->value_bytes);
      break;
  }
  response.value_bytes = pair->value_bytes;
  memcpy(response.value, pair->value, pair->value_bytes);
}

// The client of that number; no room for another one: null.
Client* client_of(std::uint64_t id) {
  Client* client = clients.find(id * 0x9e37'79b9'7f4a'7c15 >> 32, [&](const Client& c) { return c.id == id; });
  if (client != nullptr && !client->used) {
    clients.add(*client);
    client->id = id;
  }
  return client;
}

// Once more what a server before this one did, with the answer that its client may still ask for.
void carry_out_again(const KvJournalRecord& record) {
  Pair* pair = pair_of(record.key, record.key_bytes);
  Client* client = client_of(record.client);
  require(pair != nullptr && client != nullptr, "journal: no room for what it holds");
  if (!pair->used) {
    pairs.add(*pair);
    pair->key_bytes = record.key_bytes;
    memcpy(pair->key, record.key, record.key_bytes);
  }
  pair->value_bytes = record.value_bytes;
  memcpy(pair->value, record.value, record.value_bytes);
  client->last = {};
  client->last.magic = kKvMagic;
  client->last.client = record.client;
  client->last.sequence = record.sequence;
  if (record.operation != KvOperation::kIncrement) return;
  client->last.value_bytes = record.value_bytes;
  memcpy(client->last.value, record.value, record.value_bytes);
}

KvResponse respond(const KvRequest& request) {
  KvResponse response{};
  response.magic = kKvMagic;
  response.client = request.client;
  response.sequence = request.sequence;
  Client* client = client_of(request.client);
  if (client == nullptr) {
    response.status = KvStatus::kFull;
    return response;
  }
  if (request.sequence == client->last.sequence) return client->last;
  if (request.sequence < client->last.sequence) {
    response.status = KvStatus::kOld;
    return response;
  }
  if (well_formed(request)) {
    carry_out(request, response);
  } else {
    response.status = KvStatus::kBad;
  }
  client->last = response;
  return response;
}

struct Reply {
  UdpEndpoint to;
  KvResponse response;
};

// The requests that have come, at least one.
unsigned take_batch(UdpHost& host, Reply* replies) {
  unsigned count = 0;
  Datagram datagram = host.receive();
  do {
    KvRequest request;
    if (datagram.to_port != kKvPort || datagram.bytes != sizeof request) continue;
    memcpy(&request, datagram.payload, sizeof request);
    if (request.magic != kKvMagic) continue;
    replies[count++] = {datagram.from, respond(request)};
  } while (count < kMaxKvBatch && host.poll(datagram));
  return count;
}

}  // namespace

int guest_main() {
  const Text ip = parameter("ip");
  const std::uint64_t limit = parameter("requests", 0);
  if (parameter("journal", 0) != 0) {
    journal = new Journal(0);
    journal->recover(carry_out_again);
  }
  auto* nic = new NetDevice(0);
  UdpHost host(*nic, ip.data == nullptr ? Ipv4Address{0x0a00'0002} : ipv4_address(ip));
  print("kv_server ready\n");
  for (std::uint64_t answered = 0; limit == 0 || answered < limit;) {
    Reply replies[kMaxKvBatch];
    const unsigned count = take_batch(host, replies);
    if (journal != nullptr) journal->commit();
    for (unsigned i = 0; i < count; ++i) {
      if (host.send(replies[i].to, kKvPort, &replies[i].response, sizeof replies[i].response)) ++answered;
    }
  }
  nic->flush();
  print("kv_server done\n");
  return 0;
}
