#include "vmm/guest/runtime/memory.h"

#include <bit>
#include <cstdint>
#include <new>

#include "vmm/guest/runtime/console.h"
#include "vmm/guest/runtime/mmio.h"

namespace {

// A string instruction cannot end an epoch: it handles at most this much.
constexpr std::size_t kPiece = 4096;

void count_bytes(std::size_t bytes) { pollux::guest::count(bytes / pollux::guest_abi::kCopiedBytesPerCount); }

}  // namespace

// Compiled with -fno-tree-loop-distribute-patterns: a loop in here must not become a call of itself.
extern "C" {

void* memcpy(void* to, const void* from, std::size_t bytes) {
  auto* out = static_cast<std::uint8_t*>(to);
  const auto* in = static_cast<const std::uint8_t*>(from);
  if (bytes < 64) {
    for (; bytes >= 8; bytes -= 8, out += 8, in += 8) __builtin_memcpy(out, in, 8);
    for (; bytes > 0; --bytes) *out++ = *in++;
    return to;
  }
  while (bytes > 0) {
    std::size_t piece = bytes < kPiece ? bytes : kPiece;
    bytes -= piece;
    count_bytes(piece);
    asm volatile("rep movsb" : "+D"(out), "+S"(in), "+c"(piece) : : "memory");
  }
  return to;
}

void* memmove(void* to, const void* from, std::size_t bytes) {
  auto* out = static_cast<std::uint8_t*>(to);
  const auto* in = static_cast<const std::uint8_t*>(from);
  if (out <= in || out >= in + bytes) {
    if (out + 64 <= in || out >= in + bytes) return memcpy(to, from, bytes);
    for (std::size_t i = 0; i < bytes; ++i) out[i] = in[i];
    return to;
  }
  std::size_t i = bytes;
  if (out - in >= 8) {
    for (; i >= 8; i -= 8) {
      std::uint64_t word = 0;
      __builtin_memcpy(&word, in + i - 8, 8);
      __builtin_memcpy(out + i - 8, &word, 8);
    }
  }
  for (; i > 0; --i) out[i - 1] = in[i - 1];
  return to;
}

void* memset(void* to, int value, std::size_t bytes) {
  auto* out = static_cast<std::uint8_t*>(to);
  while (bytes > 0) {
    std::size_t piece = bytes < kPiece ? bytes : kPiece;
    bytes -= piece;
    count_bytes(piece);
    asm volatile("rep stosb" : "+D"(out), "+c"(piece) : "a"(value) : "memory");
  }
  return to;
}

int memcmp(const void* a, const void* b, std::size_t bytes) {
  const auto* left = static_cast<const std::uint8_t*>(a);
  const auto* right = static_cast<const std::uint8_t*>(b);
  std::size_t i = 0;
  for (; i + 8 <= bytes; i += 8) {
    std::uint64_t x = 0, y = 0;
    __builtin_memcpy(&x, left + i, 8);
    __builtin_memcpy(&y, right + i, 8);
    if (x != y) break;
  }
  for (; i < bytes; ++i) {
    if (left[i] != right[i]) return left[i] < right[i] ? -1 : 1;
  }
  return 0;
}

std::size_t strlen(const char* text) {
  std::size_t length = 0;
  while (text[length] != 0) ++length;
  return length;
}

}  // extern "C"

namespace pollux::guest {
namespace {

// Every block begins with a header and has the size of its class, a power of two: taking and giving back take
// constant time, and memory never fragments beyond the classes.
constexpr std::size_t kHeader = 16;
constexpr unsigned kMinClass = 5;   // 32 bytes
constexpr unsigned kMaxClass = 31;  // 2 GiB

struct Block {
  std::uint64_t size_class;
  Block* next;  // while free; else the owner's bytes begin here, at kHeader
};

std::uint64_t heap_next = 0;
std::uint64_t heap_end = 0;
Block* free_blocks[kMaxClass + 1];

std::uint64_t take(std::uint64_t bytes, std::uint64_t alignment) {
  const std::uint64_t start = (heap_next + alignment - 1) & ~(alignment - 1);
  if (start > heap_end || bytes > heap_end - start) panic("out of memory");
  heap_next = start + bytes;
  return start;
}

}  // namespace

void start_heap(std::uint64_t begin, std::uint64_t end) {
  heap_next = begin;
  heap_end = end;
}

void* allocate(std::size_t bytes) {
  if (bytes > (std::size_t{1} << kMaxClass) - kHeader) panic("out of memory");
  const auto width = static_cast<unsigned>(std::bit_width(bytes + kHeader - 1));
  const unsigned size_class = width < kMinClass ? kMinClass : width;
  Block* block = free_blocks[size_class];
  if (block != nullptr) {
    free_blocks[size_class] = block->next;
  } else {
    block = reinterpret_cast<Block*>(take(std::uint64_t{1} << size_class, kHeader));
    block->size_class = size_class;
  }
  return reinterpret_cast<std::uint8_t*>(block) + kHeader;
}

void release(void* pointer) {
  if (pointer == nullptr) return;
  auto* block = reinterpret_cast<Block*>(static_cast<std::uint8_t*>(pointer) - kHeader);
  require(block->size_class >= kMinClass && block->size_class <= kMaxClass, "release of no block");
  block->next = free_blocks[block->size_class];
  free_blocks[block->size_class] = block;
}

void* allocate_pages(std::size_t bytes) {
  const std::size_t whole = (bytes + kPageSize - 1) & ~(kPageSize - 1);
  return memset(reinterpret_cast<void*>(take(whole, kPageSize)), 0, whole);
}

std::size_t heap_room() { return heap_end - heap_next; }

}  // namespace pollux::guest

void* operator new(std::size_t bytes) { return pollux::guest::allocate(bytes); }
void* operator new[](std::size_t bytes) { return pollux::guest::allocate(bytes); }
void operator delete(void* pointer) noexcept { pollux::guest::release(pointer); }
void operator delete[](void* pointer) noexcept { pollux::guest::release(pointer); }
void operator delete(void* pointer, std::size_t) noexcept { pollux::guest::release(pointer); }
void operator delete[](void* pointer, std::size_t) noexcept { pollux::guest::release(pointer); }
