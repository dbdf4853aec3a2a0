#include "tests/support/test_machine.h"

#include <fcntl.h>
#include <linux/kvm.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstddef>
#include <cstring>
#include <thread>

#include "base/error.h"
#include "vmm/make_machine.h"

namespace pollux::testing {

using guests::WriterControl;
using guests::WriterMode;
using vmm::GuestAddress;

namespace {

// The guest writes these words meanwhile: read and written as single words.
std::uint64_t load(const vmm::GuestMemory& memory, std::size_t offset) {
  const auto view = memory.view(GuestAddress{guests::kControlAddress + offset}, sizeof(std::uint64_t));
  POLLUX_ASSERT(view.has_value());
  return __atomic_load_n(reinterpret_cast<const std::uint64_t*>(view->data()), __ATOMIC_ACQUIRE);
}

void store(vmm::GuestMemory& memory, std::size_t offset, std::uint64_t value) {
  const auto view = memory.writable_view(GuestAddress{guests::kControlAddress + offset}, sizeof value);
  POLLUX_ASSERT(view.has_value());
  __atomic_store_n(reinterpret_cast<std::uint64_t*>(view->data()), value, __ATOMIC_RELEASE);
}

}  // namespace

std::string why_no_kvm() {
  const Fd kvm(::open("/dev/kvm", O_RDWR | O_CLOEXEC));
  // That it opens is not enough: a sandbox may have put another file there.
  if (kvm && ::ioctl(kvm.get(), KVM_GET_API_VERSION, 0) == KVM_API_VERSION) return "";
  return std::string("/dev/kvm: ") + std::strerror(errno);
}

std::unique_ptr<vmm::Backends> no_backends() {
  return std::make_unique<vmm::Backends>(std::vector<std::unique_ptr<vmm::Image>>{},
                                         std::vector<std::unique_ptr<vmm::Nic>>{},
                                         vmm::open_console("none", [] {}), vmm::open_console("none", [] {}));
}

vmm::MachineConfig page_writer_config(std::uint64_t memory_bytes) {
  vmm::MachineConfig config;
  config.memory_bytes = memory_bytes;
  return config;
}

vmm::BootSource page_writer_source() { return {POLLUX_PAGE_WRITER, "", ""}; }

void PageWriter::request(WriterMode mode, std::uint64_t pages, std::uint64_t seed, std::uint64_t steps) {
  store(memory_, offsetof(WriterControl, mode), static_cast<std::uint64_t>(mode));
  store(memory_, offsetof(WriterControl, pages), pages);
  store(memory_, offsetof(WriterControl, seed), seed);
  store(memory_, offsetof(WriterControl, steps), steps);
  store(memory_, offsetof(WriterControl, request), load(memory_, offsetof(WriterControl, request)) + 1);
}

void PageWriter::finish() { store(memory_, offsetof(WriterControl, steps), 0); }

bool PageWriter::served() const {
  return load(memory_, offsetof(WriterControl, served)) == load(memory_, offsetof(WriterControl, request));
}

bool PageWriter::wait_until_served() const {
  return eventually([this] { return served(); });
}

std::uint64_t PageWriter::steps() const { return load(memory_, offsetof(WriterControl, steps)); }
std::uint64_t PageWriter::rounds() const { return load(memory_, offsetof(WriterControl, rounds)); }
std::uint64_t PageWriter::checksum() const { return load(memory_, offsetof(WriterControl, checksum)); }

TestMachine::TestMachine(std::uint64_t memory_bytes, vmm::MachineOptions options)
    : backends_(no_backends()),
      output_(*backends_),
      machine_(vmm::boot_machine(page_writer_config(memory_bytes), page_writer_source(), *backends_, input_, output_,
                                  options)) {}

TestMachine::TestMachine(std::unique_ptr<vmm::GuestMemory> memory, ByteView state, vmm::MachineOptions options)
    : backends_(no_backends()), output_(*backends_) {
  const vmm::MachineConfig config = page_writer_config(memory->size());
  machine_ = vmm::restore_machine(config, std::move(memory), state, *backends_, input_, output_, options);
}

std::uint64_t undisturbed_checksum(std::uint64_t memory_bytes, std::uint64_t pages, std::uint64_t seed, std::uint64_t steps) {
  TestMachine machine(memory_bytes);
  machine.writer().request(WriterMode::kMix, pages, seed, steps);
  machine.machine().resume();
  POLLUX_ASSERT(eventually([&] { return machine.writer().served(); }, std::chrono::seconds(300)));
  machine.machine().pause();
  return machine.writer().checksum();
}

guests::WriterControl* writer_control(const vmm::GuestMemory& memory) {
  const auto view = memory.view(GuestAddress{guests::kControlAddress}, sizeof(WriterControl));
  POLLUX_ASSERT(view.has_value());
  return const_cast<WriterControl*>(reinterpret_cast<const WriterControl*>(view->data()));
}

void take_away_page(const vmm::GuestMemory& memory, vmm::GuestAddress address) {
  const auto page = memory.page(address.gfn());
  POLLUX_ASSERT(::mprotect(const_cast<std::byte*>(page.data()), page.size(), PROT_NONE) == 0);
}

std::unique_ptr<vmm::GuestMemory> copy_of(const vmm::GuestMemory& memory) {
  auto copy = std::make_unique<vmm::GuestMemory>(memory.size());
  for (std::size_t i = 0; i < memory.regions().size(); ++i) {
    const auto& from = memory.regions()[i].bytes;
    std::memcpy(copy->regions()[i].bytes.data(), from.data(), from.size());
  }
  return copy;
}

std::optional<vmm::Gfn> first_difference(const vmm::GuestMemory& a, const vmm::GuestMemory& b) {
  for (const vmm::Gfn gfn : a.all_gfns()) {
    if (std::memcmp(a.page(gfn).data(), b.page(gfn).data(), kPageSize) != 0) return gfn;
  }
  return std::nullopt;
}

}  // namespace pollux::testing
