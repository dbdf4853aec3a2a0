// From the jump to CPL3 to guest_main(), and what becomes of exceptions.
#include "vmm/guest/runtime/guest.h"
#include "vmm/guest/runtime/mmio.h"

extern "C" {
// boot.S
struct PolluxExceptionRecord {
  std::uint64_t vector, error_code, rip, rsp, cr2;
};
PolluxExceptionRecord pollux_exception_record;
[[noreturn]] void pollux_exception();
[[noreturn]] void pollux_start(const std::uint8_t* zero_page);

// guest.ld
extern void (*const pollux_init_array[])();
extern void (*const pollux_init_array_end[])();
extern const char pollux_image_end[];

// Destructors of static objects never run: the machine ends instead.
int __cxa_atexit(void (*)(void*), void*, void*) { return 0; }
void* __dso_handle = nullptr;
[[noreturn]] void __cxa_pure_virtual() { pollux::guest::panic("pure virtual function called"); }
}

namespace pollux::guest {
namespace {

// What boot.S has as numbers.
static_assert(guest_abi::kEpochDevice == 0xd010'0000 && guest_abi::kEpochDeviceVirtual == 0x1000);
static_assert(guest_abi::kEpochEnd == 0 && guest_abi::kWait == 8 && guest_abi::kPowerOff == 0x30);
static_assert(guest_abi::kEventVector == 0x20 && guest_abi::kExitException == 0x200);

// arch/x86/include/uapi/asm/bootparam.h, struct boot_params
constexpr std::size_t kCommandLinePointer = 0x228;
constexpr std::size_t kMemoryMapEntries = 0x1e8;
constexpr std::size_t kMemoryMap = 0x2d0;
constexpr std::size_t kMemoryMapEntryBytes = 20;
constexpr unsigned kMaxMemoryMapEntries = 128;
constexpr std::uint32_t kRam = 1;

constexpr std::size_t kMaxCommandLine = 2048;

const char* command_line = "";
// The machine writes it, at epoch ends.
alignas(8) volatile std::uint64_t event_word = 0;
std::uint64_t pending_events = 0;

template <class T>
T field(const std::uint8_t* base, std::size_t offset) {
  T value;
  __builtin_memcpy(&value, base + offset, sizeof value);
  return value;
}

// From the image's end to the end of the RAM it is in.
void find_heap(const std::uint8_t* zero_page) {
  const auto begin = reinterpret_cast<std::uint64_t>(pollux_image_end);
  const unsigned entries = zero_page[kMemoryMapEntries];
  for (unsigned i = 0; i < entries && i < kMaxMemoryMapEntries; ++i) {
    const std::uint8_t* entry = zero_page + kMemoryMap + i * kMemoryMapEntryBytes;
    const auto start = field<std::uint64_t>(entry, 0), bytes = field<std::uint64_t>(entry, 8);
    if (field<std::uint32_t>(entry, 16) == kRam && start <= begin && begin - start < bytes) {
      return start_heap(begin, start + bytes);
    }
  }
  panic("the image is not in RAM");
}

void look_for_events() {
  // One exchange: nothing is delivered between reading and clearing.
  std::uint64_t delivered = 0;
  asm volatile("xchgq %0, %1" : "+r"(delivered), "+m"(event_word) : : "memory");
  pending_events |= delivered;
}

}  // namespace

Text parameter(const char* name) {
  const Text wanted = text_of(name);
  const char* at = command_line;
  for (std::size_t i = 0; i < kMaxCommandLine && *at != 0; ++i) {
    while (*at == ' ') ++at;
    const char* word = at;
    while (*at != 0 && *at != ' ') ++at;
    const auto size = static_cast<std::size_t>(at - word);
    if (size > wanted.size && word[wanted.size] == '=' && Text{word, wanted.size} == wanted) {
      return {word + wanted.size + 1, size - wanted.size - 1};
    }
  }
  return {};
}

std::uint64_t parameter(const char* name, std::uint64_t otherwise) {
  const Text text = parameter(name);
  if (text.data == nullptr) return otherwise;
  std::uint64_t value = 0;
  require(text.size > 0 && text.size < 20, "a parameter is not a number");
  for (std::size_t i = 0; i < text.size; ++i) {
    require(text.data[i] >= '0' && text.data[i] <= '9', "a parameter is not a number");
    value = value * 10 + static_cast<std::uint64_t>(text.data[i] - '0');
  }
  return value;
}

std::uint64_t clock_ns() { return load_epoch_register(guest_abi::kClockNs); }
std::uint64_t entropy() { return load_epoch_register(guest_abi::kEntropy); }

std::uint64_t take_events(std::uint64_t mask) {
  look_for_events();
  const std::uint64_t taken = pending_events & mask;
  pending_events &= ~taken;
  return taken;
}

std::uint64_t wait_for_events(std::uint64_t mask) {
  for (;;) {
    if (const std::uint64_t taken = take_events(mask)) return taken;
    asm volatile("call pollux_wait" : : : "memory", "cc");
  }
}

void set_timer(std::uint64_t due_ns) { store_epoch_register(guest_abi::kTimerNs, due_ns); }

void sleep_until(std::uint64_t due_ns) {
  while (clock_ns() < due_ns) {
    set_timer(due_ns);
    (void)wait_for_events(guest_abi::kTimerEvent);
  }
}

}  // namespace pollux::guest

using namespace pollux::guest;

void pollux_exception() {
  const PolluxExceptionRecord& record = pollux_exception_record;
  print("guest exception ", record.vector, " error ", Hex{record.error_code}, " at ", Hex{record.rip},
        " stack ", Hex{record.rsp}, " address ", Hex{record.cr2}, "\n");
  power_off(pollux::guest_abi::kExitException + static_cast<std::uint32_t>(record.vector));
}

void pollux_start(const std::uint8_t* zero_page) {
  command_line =
      reinterpret_cast<const char*>(std::uint64_t{field<std::uint32_t>(zero_page, kCommandLinePointer)});
  if (command_line == nullptr) command_line = "";
  find_heap(zero_page);
  store_epoch_register(pollux::guest_abi::kEventWord, reinterpret_cast<std::uint64_t>(&event_word));
  for (auto* constructor = pollux_init_array; constructor != pollux_init_array_end; ++constructor)
    (*constructor)();
  power_off(static_cast<std::uint32_t>(guest_main()));
}
