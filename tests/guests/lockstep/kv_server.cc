// A key-value server over UDP (kv_protocol.h), on the first NIC. ip=A.B.C.D (10.0.0.2); requests=N: powers off after
// answering at least as many (0: never); journal=1: writes are on the first disk before they are answered, else all is in memory.
#include "tests/guests/lockstep/kv_protocol.h"
#include "vmm/guest/runtime/block.h"
#include "vmm/guest/runtime/guest.h"
#include "vmm/guest/runtime/net.h"

using namespace pollux::guest;
using namespace pollux::guests;

namespace {

// What is answered together.
constexpr unsigned kMaxBatch = 16;

class Journal {
 public:
  explicit Journal(unsigned disk) : disk_(disk), records_(static_cast<KvJournalRecord*>(allocate_pages(kMaxBatch * kSectorBytes))) {}

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
    BlockRequest requests[kMaxBatch];
    for (unsigned i = 0; i < count_; ++i) {
      requests[i] = {BlockRequest::Operation::kWrite, (records_[i].number - 1) % disk_.sectors(), &records_[i], kSectorBytes};
      disk_.submit(requests[i]);
    }
    for (unsigned i = 0; i < count_; ++i) {
      disk_.wait(requests[i]);
      require(!requests[i].failed, "journal: write error");
    }
    require(disk_.flush(), "journal: flush error");
    count_ = 0;
  }

 private:
  BlockDevice disk_;
  KvJournalRecord* records_;
  unsigned count_ = 0;
  std::uint64_t number_ = 0;
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

void carry_out(const KvRequest& request, KvResponse& response) {
  Pair* pair = pairs.find(kv_hash(request.key, request.key_bytes), [&](const Pair& p) {
    return p.key_bytes == request.key_bytes && memcmp(p.key, request.key, p.key_bytes) == 0;
  });
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

KvResponse respond(const KvRequest& request) {
  KvResponse response{};
  response.magic = kKvMagic;
  response.client = request.client;
  response.sequence = request.sequence;
  Client* client = clients.find(request.client * 0x9e37'79b9'7f4a'7c15 >> 32,
                                [&](const Client& c) { return c.id == request.client; });
  if (client == nullptr) {
    response.status = KvStatus::kFull;
    return response;
  }
  if (!client->used) {
    clients.add(*client);
    client->id = request.client;
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
  } while (count < kMaxBatch && host.poll(datagram));
  return count;
}

}  // namespace

int guest_main() {
  const Text ip = parameter("ip");
  const std::uint64_t limit = parameter("requests", 0);
  if (parameter("journal", 0) != 0) journal = new Journal(0);
  auto* nic = new NetDevice(0);
  UdpHost host(*nic, ip.data == nullptr ? Ipv4Address{0x0a00'0002} : ipv4_address(ip));
  print("kv_server ready\n");
  for (std::uint64_t answered = 0; limit == 0 || answered < limit;) {
    Reply replies[kMaxBatch];
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
