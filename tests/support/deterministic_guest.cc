#include "tests/support/deterministic_guest.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <condition_variable>
#include <cstring>
#include <ctime>

#include "base/error.h"
#include "tests/support/socket_nic.h"
#include "tests/support/test_machine.h"
#include "vmm/gates/pass_through.h"

namespace pollux::testing {

// Disks in memory; what is printed and sent is kept.
class DeterministicGuest::Gate final : public vmm::OutputGate {
 public:
  explicit Gate(const std::vector<std::uint64_t>& disks) {
    for (const std::uint64_t bytes : disks) disks_.emplace_back(bytes);
  }
  bool transmit(vmm::NicIndex, ByteView frame) override {
    const std::lock_guard lock(mutex_);
    frames_.emplace_back(frame.begin(), frame.end());
    return frames_.size() % 5 != 0;  // what a gate answers is no matter of the guest's
  }
  void on_room(std::function<void()>) override {}
  void console(vmm::ConsoleIndex, ByteView bytes) override {
    const std::lock_guard lock(mutex_);
    console_.append(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  }
  bool read(vmm::DiskIndex disk, std::uint64_t offset, MutableByteView into) override {
    wait_until_released();
    const std::lock_guard lock(mutex_);
    std::memcpy(into.data(), disks_[disk.value].data() + offset, into.size());
    return true;
  }
  bool write(vmm::DiskIndex disk, std::uint64_t offset, ByteView from) override {
    wait_until_released();
    const std::lock_guard lock(mutex_);
    std::memcpy(disks_[disk.value].data() + offset, from.data(), from.size());
    return true;
  }
  bool discard(vmm::DiskIndex disk, std::uint64_t offset, std::uint64_t length) override {
    const std::lock_guard lock(mutex_);
    std::memset(disks_[disk.value].data() + offset, 0, length);
    return true;
  }
  bool flush(vmm::DiskIndex) override {
    wait_until_released();
    return true;
  }
  void hold(bool held) {
    {
      const std::lock_guard lock(mutex_);
      held_ = held;
    }
    changed_.notify_all();
  }
  bool is_waiting() {
    const std::lock_guard lock(mutex_);
    return waiting_ > 0;
  }
  void wait_until_waiting() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [this] { return waiting_ > 0; });
  }

  std::mutex mutex_;
  std::string console_;
  std::vector<Bytes> frames_;
  std::vector<Bytes> disks_;

 private:
  void wait_until_released() {
    std::unique_lock lock(mutex_);
    if (!held_) return;
    ++waiting_;
    changed_.notify_all();
    changed_.wait(lock, [this] { return !held_; });
    --waiting_;
  }

  std::condition_variable changed_;
  bool held_ = false;
  unsigned waiting_ = 0;  // operations
};

class DeterministicGuest::Host final : public vmm::InputGate {
 public:
  explicit Host(GuestClock clock) : clock_(clock) {}
  void attach(vmm::ArrivalSink& sink) override { gate_.attach(sink); }
  void offer(vmm::Arrival arrival) override { gate_.offer(std::move(arrival)); }
  std::chrono::nanoseconds wall_clock() override {
    if (clock_ == GuestClock::kHost) return gate_.wall_clock();
    if (clock_ == GuestClock::kMadeUp) return made_up_ += std::chrono::milliseconds(1);
    timespec used{};
    ::clock_gettime(CLOCK_THREAD_CPUTIME_ID, &used);
    return std::chrono::seconds(used.tv_sec) + std::chrono::nanoseconds(used.tv_nsec);
  }
  void entropy(MutableByteView into) override {
    if (clock_ == GuestClock::kHost) return gate_.entropy(into);
    for (std::byte& byte : into) byte = static_cast<std::byte>(++entropy_);
  }

 private:
  vmm::PassThroughInput gate_;
  GuestClock clock_;
  std::chrono::nanoseconds made_up_ = std::chrono::seconds(1'700'000'000);
  unsigned entropy_ = 0;
};

class DeterministicGuest::PipeConsole final : public vmm::ConsolePort {
 public:
  explicit PipeConsole(int fd) : fd_(fd) {}
  int poll_fd() const override { return fd_.get(); }
  Bytes read() override {
    Bytes bytes(4096);
    const auto got = ::read(fd_.get(), bytes.data(), bytes.size());
    bytes.resize(got > 0 ? static_cast<std::size_t>(got) : 0);
    return bytes;
  }
  void write(ByteView) override {}

 private:
  Fd fd_;
};

std::string guest_path(const std::string& name) {
  return name.find('/') == std::string::npos ? std::string(POLLUX_GUESTS) + "/" + name : name;
}

namespace {

vmm::MachineConfig machine_config(const DeterministicGuestConfig& config) {
  vmm::MachineConfig machine;
  machine.profile = vmm::MachineProfile::kDeterministic;
  machine.memory_bytes = config.memory_bytes;
  for (const std::uint64_t bytes : config.disks) machine.disks.push_back({bytes, false});
  for (unsigned i = 0; i < config.nics; ++i) machine.nics.push_back({{0x52, 0x54, 0, 0, 0, static_cast<std::uint8_t>(i + 1)}});
  return machine;
}

// Only its presence counts: the gate has the disks.
std::unique_ptr<vmm::Image> some_image(std::uint64_t bytes) {
  char path[] = "/tmp/pollux-disk-XXXXXX";
  const Fd file(::mkstemp(path));
  POLLUX_ASSERT(file && ::ftruncate(file.get(), static_cast<off_t>(bytes)) == 0);
  auto image = std::make_unique<vmm::Image>(path, false);
  ::unlink(path);
  return image;
}

}  // namespace

void DeterministicGuest::open_backends() {
  std::vector<std::unique_ptr<vmm::Image>> images;
  for (const std::uint64_t bytes : config_.disks) images.push_back(some_image(bytes));
  std::vector<std::unique_ptr<vmm::Nic>> nics;
  for (unsigned i = 0; i < config_.nics; ++i) {
    int pair[2];
    POLLUX_ASSERT(::socketpair(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0, pair) == 0);
    nics.push_back(std::make_unique<SocketNic>(pair[0]));
    if (i == 0) {
      nic_input_ = pair[1];
    } else {
      ::close(pair[1]);
    }
  }
  int pipe[2];
  POLLUX_ASSERT(::pipe2(pipe, O_CLOEXEC) == 0);
  console_input_ = pipe[1];
  backends_ = std::make_unique<vmm::Backends>(std::move(images), std::move(nics), vmm::open_console("none", [] {}),
                                              std::make_unique<PipeConsole>(pipe[0]));
  gate_ = std::make_unique<Gate>(config_.disks);
  host_ = std::make_unique<Host>(config_.clock);
}

DeterministicGuest::DeterministicGuest(const DeterministicGuestConfig& config) : config_(config) {
  open_backends();
  machine_ = vmm::DeterministicMachine::boot(machine_config(config_), {guest_path(config_.kernel), "", config_.command_line},
                                             *backends_, *host_, *gate_, config_.options);
}

DeterministicGuest::DeterministicGuest(const DeterministicGuestConfig& config, DeterministicGuest& other)
    : config_(config) {
  open_backends();
  const Bytes state = other.machine().save();
  {
    const std::lock_guard lock(other.gate_->mutex_);
    gate_->disks_ = other.gate_->disks_;
  }
  machine_ = vmm::DeterministicMachine::restore(machine_config(config_), copy_of(other.machine().memory()), state,
                                                *backends_, *host_, *gate_, config_.options);
}

DeterministicGuest::DeterministicGuest(const DeterministicGuestConfig& config, ByteView state,
                                       std::unique_ptr<vmm::GuestMemory> memory)
    : config_(config) {
  open_backends();
  machine_ = vmm::DeterministicMachine::restore(machine_config(config_), std::move(memory), state, *backends_, *host_,
                                                *gate_, config_.options);
}

DeterministicGuest::~DeterministicGuest() {
  release_disks();
  machine_.reset();
  ::close(console_input_);
  if (nic_input_ >= 0) ::close(nic_input_);
}

vmm::Digest RecordedRun::digest() const {
  Bytes all;
  for (const vmm::EpochDigest& digest : digests) {
    const vmm::Digest one = digest.combined();
    all.insert(all.end(), bytes_of(one).begin(), bytes_of(one).end());
  }
  return vmm::digest_of(all);
}

RecordedRun DeterministicGuest::record(vmm::EpochLength length, std::size_t epochs,
                               const std::function<void(const vmm::EpochEnd&)>& between) {
  RecordedRun run;
  record(run, length, epochs, between);
  return run;
}

void DeterministicGuest::record(RecordedRun& run, vmm::EpochLength length, std::size_t epochs,
                                const std::function<void(const vmm::EpochEnd&)>& between) {
  for (std::size_t done = 0; !machine_->exit() && done < epochs;) {
    vmm::EpochEnd end = machine_->record_epoch(length);
    if (end.why == vmm::EpochEnd::Why::kStopped) continue;
    POLLUX_ASSERT(end.why == vmm::EpochEnd::Why::kEpochEnd);
    run.inputs.push_back(encode(end.inputs));
    run.digests.push_back(end.digest);
    if (between) between(end);
    run.epochs.push_back(std::move(end));
    ++done;
  }
  run.exit = machine_->exit();
}

std::string DeterministicGuest::replay(const RecordedRun& run, std::size_t epochs,
                                       const std::function<void(const vmm::EpochEnd&)>& between) {
  const std::uint64_t first = run.epochs.front().number.value;
  for (std::size_t done = 0; done < epochs; ++done) {
    const std::uint64_t at = machine_->epoch().value - first;
    if (at >= run.inputs.size()) return "";
    if (machine_->exit()) return fmt::format("epoch {}: the machine ended already", at);
    const vmm::EpochEnd end = machine_->replay_epoch(vmm::decode_epoch_inputs(run.inputs[at]));
    if (end.why != vmm::EpochEnd::Why::kEpochEnd) return fmt::format("epoch {}: {}", at + first, end.divergence);
    if (const auto how = difference(run.digests[at], end.digest)) return fmt::format("epoch {}: {}", at + first, *how);
    if (between) between(end);
  }
  return "";
}

std::string DeterministicGuest::console() {
  const std::lock_guard lock(gate_->mutex_);
  return gate_->console_;
}

Bytes& DeterministicGuest::disk(std::size_t index) { return gate_->disks_.at(index); }

Bytes DeterministicGuest::disk_copy(std::size_t index) {
  const std::lock_guard lock(gate_->mutex_);
  return gate_->disks_.at(index);
}

std::vector<Bytes> DeterministicGuest::frames_sent() {
  const std::lock_guard lock(gate_->mutex_);
  return gate_->frames_;
}

void DeterministicGuest::type(const std::string& text) {
  POLLUX_ASSERT(::write(console_input_, text.data(), text.size()) == static_cast<ssize_t>(text.size()));
}

void DeterministicGuest::send_frame(Bytes frame) {
  POLLUX_ASSERT(::send(nic_input_, frame.data(), frame.size(), 0) == static_cast<ssize_t>(frame.size()));
}

std::size_t make_sites_loop(const vmm::GuestMemory& memory) {
  constexpr std::array kSite{std::byte{0x49}, std::byte{0x83}, std::byte{0xef}, std::byte{0x01}};  // subq $1, %r15
  std::size_t found = 0;
  for (const vmm::Gfn gfn : memory.all_gfns()) {
    const ByteView page = memory.page(gfn);
    for (auto at = page.begin(); (at = std::search(at, page.end(), kSite.begin(), kSite.end())) != page.end(); ++found) {
      const auto site = const_cast<std::byte*>(&*at);
      site[0] = std::byte{0xeb};  // jmp
      site[1] = std::byte{0xfe};  // to itself
      at += kSite.size();
    }
  }
  return found;
}

void DeterministicGuest::hold_disks() { gate_->hold(true); }
void DeterministicGuest::release_disks() { gate_->hold(false); }
bool DeterministicGuest::is_disk_held() { return gate_->is_waiting(); }
void DeterministicGuest::wait_until_disk_held() { gate_->wait_until_waiting(); }

}  // namespace pollux::testing
