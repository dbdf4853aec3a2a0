#include "cli/host_options.h"

#include <sys/stat.h>

#include <CLI/CLI.hpp>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <sstream>

#include "base/error.h"
#include "vmm/block/private_image.h"

namespace pollux::cli {
namespace {

std::vector<std::string> split(const std::string& text) {
  std::vector<std::string> parts;
  std::istringstream stream(text);
  for (std::string part; std::getline(stream, part, ',');) parts.push_back(part);
  return parts;
}

DiskOption parse_disk(const std::string& text) {
  const std::vector<std::string> parts = split(text);
  const bool plain = parts.size() == 1;
  if (!plain && !(parts.size() == 2 && parts[1] == "ro")) throw UsageError("--disk " + text + ": expected PATH or PATH,ro");
  return {parts[0], !plain};
}

NetOption parse_net(const std::string& text) {
  NetOption net;
  for (const std::string& part : split(text)) {
    if (part.rfind("tap=", 0) == 0) {
      net.tap = part.substr(4);
    } else if (part.rfind("mac=", 0) == 0) {
      net.mac = vmm::parse_mac(part.substr(4));
      if (!net.mac) throw UsageError("--net " + text + ": not a unicast MAC address such as 52:54:00:12:34:56");
    } else {
      throw UsageError("--net " + text + ": expected tap=NAME[,mac=XX:XX:XX:XX:XX:XX]");
    }
  }
  if (net.tap.empty()) throw UsageError("--net " + text + ": tap=NAME is missing");
  return net;
}

// Under whatever names: the same file, or the same block device.
bool same_file(const std::string& a, const std::string& b) {
  struct stat of_a {}, of_b {};
  if (::stat(a.c_str(), &of_a) != 0 || ::stat(b.c_str(), &of_b) != 0) return false;  // opening it says why
  if (S_ISBLK(of_a.st_mode) && S_ISBLK(of_b.st_mode)) return of_a.st_rdev == of_b.st_rdev;
  return of_a.st_dev == of_b.st_dev && of_a.st_ino == of_b.st_ino;
}

}  // namespace

void check_timing(std::uint64_t heartbeat_ms, std::uint64_t timeout_ms) {
  if (heartbeat_ms < 1 || heartbeat_ms > kMaxMilliseconds) throw UsageError("--heartbeat-ms: expected 1 to 86400000");
  if (timeout_ms < 2 * heartbeat_ms || timeout_ms > kMaxMilliseconds) {
    throw UsageError("--timeout-ms: expected at least twice --heartbeat-ms, and at most 86400000");
  }
}

void check_writable(const std::string& option, const std::string& path) {
  if (path.empty()) return;
  const std::ofstream file(path, std::ios::app);
  if (!file) throw UsageError(option + " " + path + ": cannot be written: " + std::strerror(errno));
}

void HostOptions::add_to(CLI::App& app, const std::string& console) {
  console_ = console;
  app.add_option("--disk", disks_, "disk image, a raw file or block device: PATH[,ro]; repeatable")->type_name("PATH");
  app.add_option("--net", nets_, "NIC on a TAP of this host: tap=NAME[,mac=..]; repeatable")->type_name("SPEC");
  app.add_option("--console", console_, "serial console (ttyS0): stdio (Ctrl-A x leaves), file=PATH or none")
      ->capture_default_str();
  app.add_option("--virtio-console", virtio_console_, "second console (hvc0): stdio, file=PATH or none")
      ->capture_default_str();
}

std::vector<DiskOption> HostOptions::disks() const {
  if (disks_.size() > vmm::kMaxDisks) throw UsageError("--disk: at most " + std::to_string(vmm::kMaxDisks) + " disks");
  std::vector<DiskOption> parsed;
  for (const std::string& text : disks_) {
    const DiskOption disk = parse_disk(text);
    for (const DiskOption& other : parsed) {
      const bool one_writes = !disk.read_only || !other.read_only;
      if (one_writes && same_file(disk.path, other.path)) {
        throw UsageError("--disk " + text + ": given twice; a file may be several disks only if all are read-only");
      }
    }
    parsed.push_back(disk);
  }
  return parsed;
}

std::vector<NetOption> HostOptions::nets() const {
  if (nets_.size() > vmm::kMaxNics) throw UsageError("--net: at most " + std::to_string(vmm::kMaxNics) + " NICs");
  std::vector<NetOption> parsed;
  for (const std::string& text : nets_) {
    const NetOption net = parse_net(text);
    for (const NetOption& other : parsed) {
      if (net.tap == other.tap) throw UsageError("--net " + text + ": TAP " + net.tap + " is given twice");
    }
    parsed.push_back(net);
  }
  return parsed;
}

void HostOptions::check_writable_disks(const std::string& asked_by) const {
  for (const DiskOption& disk : disks()) {
    if (disk.read_only) throw UsageError("--disk " + disk.path + ",ro: " + asked_by + " must be able to write its disks");
  }
}

std::unique_ptr<vmm::Backends> HostOptions::open(const std::function<void()>& on_leave, DiskUse use) const {
  std::vector<std::unique_ptr<vmm::Image>> images;
  for (const DiskOption& disk : disks()) {
    images.push_back(for_option("--disk", [&]() -> std::unique_ptr<vmm::Image> {
      if (use == DiskUse::kPrivate) return std::make_unique<vmm::PrivateImage>(disk.path);
      return std::make_unique<vmm::Image>(disk.path, disk.read_only);
    }));
  }
  std::vector<std::unique_ptr<vmm::Nic>> nics;
  for (const NetOption& net : nets()) {
    nics.push_back(for_option("--net", [&] { return std::make_unique<vmm::Tap>(net.tap); }));
  }
  return with_consoles(std::move(images), std::move(nics), on_leave);
}

std::unique_ptr<vmm::Backends> HostOptions::open_for_replay(const std::function<void()>& on_leave,
                                                            const std::vector<std::string>& recorded_disks,
                                                            std::size_t nics) const {
  std::vector<std::string> paths;
  for (const DiskOption& disk : disks()) paths.push_back(disk.path);
  if (paths.empty()) paths = recorded_disks;
  if (paths.size() != recorded_disks.size()) {
    throw UsageError("--disk: expected none, or the " + std::to_string(recorded_disks.size()) + " that were recorded");
  }
  std::vector<std::unique_ptr<vmm::Image>> images;
  for (const std::string& path : paths) {
    images.push_back(for_option("--disk", [&] { return std::make_unique<vmm::PrivateImage>(path); }));
  }
  std::vector<std::unique_ptr<vmm::Nic>> unconnected;
  for (std::size_t i = 0; i < nics; ++i) unconnected.push_back(std::make_unique<vmm::NullNic>());
  return with_consoles(std::move(images), std::move(unconnected), on_leave);
}

std::unique_ptr<vmm::Backends> HostOptions::with_consoles(std::vector<std::unique_ptr<vmm::Image>> images,
                                                          std::vector<std::unique_ptr<vmm::Nic>> nics,
                                                          const std::function<void()>& on_leave) const {
  if (console_ == "stdio" && virtio_console_ == "stdio") {
    throw UsageError("--virtio-console stdio: --console has stdio already");
  }
  auto virtio_console =
      for_option("--virtio-console", [&] { return vmm::open_console(virtio_console_, on_leave); });
  auto serial = for_option("--console", [&] { return vmm::open_console(console_, on_leave); });
  return std::make_unique<vmm::Backends>(std::move(images), std::move(nics), std::move(serial), std::move(virtio_console));
}

}  // namespace pollux::cli
