// Writes blocks of a known pattern to the first disk, reads them back and compares. blocks=N (256) of 4 KiB,
// rounds=N (2), verify=1: only reads what an earlier run with the same parameters left. reads=N (1): how often each round
// reads; 0: it only writes, and says so. until_told=1: see rounds.h.
#include "tests/guests/lockstep/rounds.h"
#include "vmm/guest/runtime/block.h"
#include "vmm/guest/runtime/guest.h"

using namespace pollux::guest;

namespace {

constexpr std::uint64_t kBlockBytes = 4096;
constexpr std::uint64_t kWords = kBlockBytes / 8;
constexpr std::uint64_t kSectors = kBlockBytes / kSectorBytes;
constexpr unsigned kAtOnce = 24;

struct Block {
  std::uint64_t words[kWords];
};

std::uint64_t mix(std::uint64_t x) {
  x = (x ^ x >> 31) * 0x9e37'79b9'7f4a'7c15;
  return x ^ x >> 29;
}

std::uint64_t word_at(std::uint64_t round, std::uint64_t block, std::uint64_t word) {
  return mix(mix(round * 0x1'0000'0000 + block) + word);
}

void write_round(BlockDevice& disk, Block* buffers, std::uint64_t round, std::uint64_t blocks) {
  BlockRequest requests[kAtOnce];
  for (std::uint64_t start = 0; start < blocks; start += kAtOnce) {
    const std::uint64_t count = blocks - start < kAtOnce ? blocks - start : kAtOnce;
    for (std::uint64_t i = 0; i < count; ++i) {
      for (std::uint64_t w = 0; w < kWords; ++w) buffers[i].words[w] = word_at(round, start + i, w);
      requests[i] = {BlockRequest::Operation::kWrite, (start + i) * kSectors, &buffers[i], kBlockBytes};
      disk.submit(requests[i]);
    }
    for (std::uint64_t i = 0; i < count; ++i) {
      disk.wait(requests[i]);
      require(!requests[i].failed, "write error");
    }
  }
  require(disk.flush(), "flush error");
}

std::uint64_t read_round(BlockDevice& disk, Block* buffers, std::uint64_t round, std::uint64_t blocks) {
  std::uint64_t checksum = 0;
  for (std::uint64_t start = 0; start < blocks; start += kAtOnce) {
    const std::uint64_t count = blocks - start < kAtOnce ? blocks - start : kAtOnce;
    require(disk.read(start * kSectors, buffers, count * kBlockBytes), "read error");
    for (std::uint64_t i = 0; i < count; ++i) {
      for (std::uint64_t w = 0; w < kWords; ++w) {
        if (buffers[i].words[w] != word_at(round, start + i, w)) {
          print("block ", start + i, " word ", w, " of round ", round, " differs\n");
          panic("disk content");
        }
        checksum = mix(checksum ^ buffers[i].words[w]);
      }
    }
  }
  return checksum;
}

}  // namespace

int guest_main() {
  const std::uint64_t blocks = parameter("blocks", 256), rounds = parameter("rounds", 2);
  const std::uint64_t reads = parameter("reads", 1);
  const bool verify = parameter("verify", 0) != 0;
  auto* disk = new BlockDevice(0);
  auto* buffers = static_cast<Block*>(allocate_pages(kAtOnce * kBlockBytes));
  require(blocks * kSectors <= disk->sectors(), "disk too small");
  Rounds all(rounds);
  for (std::uint64_t round = verify ? rounds - 1 : 0; all.follows(round); ++round) {
    if (!verify) write_round(*disk, buffers, round, blocks);
    if (reads == 0) print("round ", round, " written\n");
    for (std::uint64_t read = 0; read < reads; ++read) {
      print("round ", round, " ", Hex{read_round(*disk, buffers, round, blocks)}, "\n");
    }
  }
  print("disk_check done, repeated ", disk->repeated(), "\n");
  return 0;
}
