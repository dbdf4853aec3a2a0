// The host's side of a machine, as `vm`, `primary` and `backup` take it: disks, TAPs, consoles.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/error.h"
#include "vmm/machine/backends.h"
#include "vmm/machine/machine_config.h"

namespace CLI {
class App;
}

namespace pollux::cli {

struct NetOption {
  std::string tap;
  std::optional<vmm::MacAddress> mac;
};

struct DiskOption {
  std::string path;
  bool read_only = false;
};

// What becomes of what a guest writes to its disks.
enum class DiskUse {
  kInPlace,
  kPrivate,  // it is kept in memory, and gone at the end
};

class HostOptions {
 public:
  // `console`: the default of --console.
  void add_to(CLI::App& app, const std::string& console = "stdio");

  // Throw UsageError naming the option.
  [[nodiscard]] std::vector<DiskOption> disks() const;
  [[nodiscard]] std::vector<NetOption> nets() const;
  // For a backup, or what may become one: a full sync writes all its disks, whatever the guest may do to them.
  void check_writable_disks(const std::string& asked_by) const;
  // Whether a console of the guest is this process's terminal.
  [[nodiscard]] bool uses_terminal() const { return console_ == "stdio" || virtio_console_ == "stdio"; }
  // Opens everything. `on_leave`: Ctrl-A x on a stdio console.
  [[nodiscard]] std::unique_ptr<vmm::Backends> open(const std::function<void()>& on_leave,
                                                    DiskUse use = DiskUse::kInPlace) const;
  // As many NICs, connected to nothing; the disks, which are never written: those given, or if none is given these.
  [[nodiscard]] std::unique_ptr<vmm::Backends> open_for_replay(const std::function<void()>& on_leave,
                                                               const std::vector<std::string>& recorded_disks,
                                                               std::size_t nics) const;

 private:
  [[nodiscard]] std::unique_ptr<vmm::Backends> with_consoles(std::vector<std::unique_ptr<vmm::Image>> images,
                                                             std::vector<std::unique_ptr<vmm::Nic>> nics,
                                                             const std::function<void()>& on_leave) const;

  std::vector<std::string> disks_;
  std::vector<std::string> nets_;
  std::string console_ = "stdio";
  std::string virtio_console_ = "none";
};

// The layers below know the file or TAP that was wrong, not the option it came from.
template <class Open>
auto for_option(const char* option, Open open) {
  try {
    return open();
  } catch (const UsageError& error) {
    throw UsageError(std::string(option) + ": " + error.what());
  }
}

// A day: beyond it a time in nanoseconds is no longer safe to add to.
inline constexpr std::uint64_t kMaxMilliseconds = 86'400'000;
// --heartbeat-ms and --timeout-ms. Throws UsageError naming the option.
void check_timing(std::uint64_t heartbeat_ms, std::uint64_t timeout_ms);
// Opens the file for writing, so that a wrong path is said now and not when there is something to write. Empty: none.
void check_writable(const std::string& option, const std::string& path);

}  // namespace pollux::cli
