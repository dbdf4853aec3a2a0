// A key-value server over UDP (kv_protocol.h), all in memory, on the first NIC. ip=A.B.C.D (10.0.0.2);
// requests=N: powers off after answering as many (0: never).
#include "tests/guests/lockstep/kv_protocol.h"
#include "vmm/guest/runtime/guest.h"
#include "vmm/guest/runtime/net.h"

using namespace pollux::guest;
using namespace pollux::guests;

namespace {

std::uint64_t hash(const std::uint8_t* bytes, std::size_t size) {
  std::uint64_t state = 0xcbf2'9ce4'8422'2325;
  for (std::size_t i = 0; i < size; ++i) state = (state ^ bytes[i]) * 0x100'0000'01b3;
  return state ^ state >> 32;
}

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
  Pair* pair = pairs.find(hash(request.key, request.key_bytes), [&](const Pair& p) {
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

}  // namespace

int guest_main() {
  const Text ip = parameter("ip");
  const std::uint64_t limit = parameter("requests", 0);
  auto* nic = new NetDevice(0);
  UdpHost host(*nic, ip.data == nullptr ? Ipv4Address{0x0a00'0002} : ipv4_address(ip));
  print("kv_server ready\n");
  for (std::uint64_t answered = 0; limit == 0 || answered < limit;) {
    const Datagram datagram = host.receive();
    KvRequest request;
    if (datagram.to_port != kKvPort || datagram.bytes != sizeof request) continue;
    memcpy(&request, datagram.payload, sizeof request);
    if (request.magic != kKvMagic) continue;
    const KvResponse response = respond(request);
    if (host.send(datagram.from, kKvPort, &response, sizeof response)) ++answered;
  }
  nic->flush();
  print("kv_server done\n");
  return 0;
}
