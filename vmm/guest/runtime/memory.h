// Memory: the functions compilers take for granted, and the heap behind operator new.
#pragma once

#include <cstddef>
#include <cstdint>

// Never inlined: the compiler's check knows where uncounted string instructions may be.
extern "C" {
[[gnu::noipa]] void* memcpy(void* to, const void* from, std::size_t bytes);
[[gnu::noipa]] void* memmove(void* to, const void* from, std::size_t bytes);
[[gnu::noipa]] void* memset(void* to, int value, std::size_t bytes);
int memcmp(const void* a, const void* b, std::size_t bytes);
std::size_t strlen(const char* text);
}

namespace pollux::guest {

inline constexpr std::size_t kPageSize = 4096;

// Once, before anything is allocated: the RAM that is the heap's.
void start_heap(std::uint64_t begin, std::uint64_t end);

// 16-aligned, not cleared. Panics when there is no room.
void* allocate(std::size_t bytes);
void release(void* pointer);
// Whole cleared pages, for ever: what devices look at.
void* allocate_pages(std::size_t bytes);
std::size_t heap_room();

}  // namespace pollux::guest
