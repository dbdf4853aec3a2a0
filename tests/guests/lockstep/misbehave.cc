// What no deterministic guest may do. what=rdtsc: keeps a reading of the time stamp counter in memory every
// iteration of a computation (where CR4.TSD is honoured that is an exception, elsewhere two runs of it
// differ); what=rdrand: the same with a random number of the processor's; what=null, undefined, divide, stack,
// privileged: the exception each leads to; what=panic. iterations=N (100000).
#include "vmm/guest/runtime/guest.h"

using namespace pollux::guest;

namespace {

// On a page of its own: it is alone in what an epoch changed.
struct alignas(4096) OwnPage {
  volatile std::uint64_t word;
};
OwnPage own_page;
volatile std::uint64_t& kept = own_page.word;

std::uint64_t time_stamp() {
  std::uint32_t low = 0, high = 0;
  asm volatile("rdtsc" : "=a"(low), "=d"(high));
  return std::uint64_t{high} << 32 | low;
}

std::uint64_t random_number() {
  std::uint64_t number = 0;
  asm volatile("rdrand %0" : "=r"(number) : : "cc");
  return number;
}

[[gnu::noinline]] std::uint64_t overflow_stack(std::uint64_t depth) {
  volatile std::uint8_t frame[1024];
  frame[depth % sizeof frame] = 1;
  return depth == ~std::uint64_t{0} ? 0 : overflow_stack(depth + 1) + frame[0];
}

}  // namespace

int guest_main() {
  const Text what = parameter("what");
  const std::uint64_t iterations = parameter("iterations", 100'000);
  const auto is = [&](const char* name) { return what == text_of(name); };
  if (is("rdtsc")) {
    for (std::uint64_t i = 0; i < iterations; ++i) kept = time_stamp();
  } else if (is("rdrand")) {
    for (std::uint64_t i = 0; i < iterations; ++i) kept = random_number();
  } else if (is("null")) {
    std::uint64_t address = 8;
    asm volatile("" : "+r"(address));
    kept = *reinterpret_cast<volatile std::uint64_t*>(address);
  } else if (is("undefined")) {
    __builtin_trap();
  } else if (is("divide")) {
    volatile std::uint64_t zero = 0;
    kept = iterations / zero;
  } else if (is("stack")) {
    kept = overflow_stack(0);
  } else if (is("privileged")) {
    asm volatile("hlt");
  } else {
    panic("asked to");
  }
  print("done\n");
  return 0;
}
