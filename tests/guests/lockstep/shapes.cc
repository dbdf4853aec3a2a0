// Control flow of every kind, for the counter's check: loops entered in two places, jumps through pointers,
// mutual and tail recursion, calls through pointers, atomic operations that compile to loops. Prints what it
// computes.
#include "vmm/guest/runtime/guest.h"

using namespace pollux::guest;

namespace {

using u64 = std::uint64_t;

// A loop with two entries (irreducible).
[[gnu::noinline]] u64 two_entries(u64 n, u64 from) {
  u64 sum = 0;
  if (from & 1) goto middle;
top:
  sum += n;
middle:
  sum ^= n << 1;
  if (n-- > 0) goto top;
  return sum;
}

[[gnu::noinline]] u64 interpret(const std::uint8_t* program, u64 value) {
  static const void* const kCode[] = {&&add, &&twice, &&back, &&end};
  const std::uint8_t* at = program;
  u64 budget = 1000;
  goto* kCode[*at];
add:
  value += 3;
  goto* kCode[*++at];
twice:
  value *= 2;
  goto* kCode[*++at];
back:
  if (--budget == 0) goto end;
  at = program;
  goto* kCode[*at];
end:
  return value;
}

[[gnu::noinline]] u64 is_odd(u64 n);
[[gnu::noinline]] u64 is_even(u64 n) { return n == 0 ? 1 : is_odd(n - 1); }
u64 is_odd(u64 n) { return n == 0 ? 0 : is_even(n - 1); }

// Recursion that only a pointer shows.
using Step = u64 (*)(u64, const void*);
u64 bounce(u64 n, const void* self) {
  Step step;
  __builtin_memcpy(&step, self, sizeof step);
  return n == 0 ? 7 : step(n - 1, self) + 1;
}

[[gnu::noinline]] u64 classify(u64 n) {
  u64 sum = 0;
  for (u64 budget = 0; budget < 5000;) {
    ++budget;
    switch (n % 9) {
      case 0: sum += 1; break;
      case 1:
        sum ^= 3;
        n += budget;
        continue;
      case 2: n += 2; break;
      case 3: sum *= 5; break;
      case 4:
        if (n > 10'000'000) return sum;
        break;
      case 5: do { sum += n;
        } while (--n % 5 != 0);
        break;
      case 6: sum -= n; break;
      default: sum = sum << 1 | sum >> 63;
    }
    ++n;
  }
  return sum;
}

std::uint64_t shared_word = 1;
[[gnu::noinline]] u64 atomic_loop(u64 n) {
  u64 last = 0;
  for (u64 i = 0; i < n; ++i) last ^= __atomic_fetch_xor(&shared_word, i * 5, __ATOMIC_SEQ_CST);
  return last ^ __atomic_fetch_nand(&shared_word, n, __ATOMIC_SEQ_CST);
}

struct Shape {
  virtual ~Shape() = default;
  virtual u64 area(u64 n) const = 0;
};
struct Square final : Shape {
  u64 area(u64 n) const override { return n * n; }
};
struct Nested final : Shape {
  explicit Nested(const Shape* inside) : inside_(inside) {}
  u64 area(u64 n) const override { return inside_->area(n) + n; }
  const Shape* inside_;
};

[[gnu::noinline]] u64 virtual_calls(u64 depth) {
  const Shape* shape = new Square;
  for (u64 i = 0; i < depth; ++i) shape = new Nested(shape);
  return shape->area(depth);
}

}  // namespace

int guest_main() {
  const std::uint8_t program[] = {0, 1, 0, 0, 2, 3};
  const Step step = bounce;
  print("two_entries ", two_entries(1000, parameter("odd", 1)), "\n");
  print("interpret ", interpret(program, 1), "\n");
  print("parity ", is_even(5'001), "\n");
  print("bounce ", bounce(500, &step), "\n");
  print("classify ", classify(2), "\n");
  print("atomic_loop ", atomic_loop(1000), "\n");
  print("virtual_calls ", virtual_calls(200), "\n");
  return 0;
}
