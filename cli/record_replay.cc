#include "cli/record_replay.h"

#include <spdlog/spdlog.h>

#include <atomic>
#include <filesystem>
#include <memory>

#include "base/error.h"
#include "cli/exit_code.h"
#include "cli/signals.h"
#include "vmm/deterministic/deterministic_machine.h"
#include "vmm/deterministic/epoch_log.h"
#include "vmm/gates/pass_through.h"

namespace pollux::cli {
namespace {

// Ends what a machine does, from any thread; also before there is a machine.
class Interruption {
 public:
  void request() {
    requested_ = true;
    if (vmm::DeterministicMachine* machine = machine_) machine->interrupt();
  }
  void use(vmm::DeterministicMachine* machine) {
    machine_ = machine;
    if (requested_ && machine != nullptr) machine->interrupt();
  }
  [[nodiscard]] bool requested() const { return requested_; }

 private:
  std::atomic<vmm::DeterministicMachine*> machine_ = nullptr;
  std::atomic<bool> requested_ = false;
};

vmm::LogOrigin origin_of(const MachineOptions& options, const vmm::MachineConfig& config, vmm::Backends& backends) {
  const vmm::BootSource source = options.boot_source();
  vmm::LogOrigin origin{config, {std::filesystem::absolute(source.kernel_path), vmm::digest_of_file(source.kernel_path)},
                        source.command_line, {}};
  for (std::uint32_t i = 0; i < backends.disk_count(); ++i) {
    vmm::Image& image = backends.disk({i});
    origin.disks.push_back({std::filesystem::absolute(image.path()), vmm::digest_of_image(image)});
  }
  return origin;
}

// The part of an epoch under way when it is stopped is forgotten: nobody has seen anything of it. Returns how it ended.
vmm::MachineExit record_epochs(vmm::DeterministicMachine& machine, vmm::EpochLength length,
                               const Interruption& interruption, vmm::EpochLogWriter& log) {
  while (!machine.exit() && !interruption.requested()) {
    const vmm::EpochEnd end = machine.record_epoch(length);
    if (end.why == vmm::EpochEnd::Why::kEpochEnd) log.append({end.number, end.inputs, end.digest});
    if (end.why != vmm::EpochEnd::Why::kStuck) continue;
    log.finish(vmm::LogEnd::kStopped);
    return {vmm::ExitReason::kCrash, "the guest does not end its epochs"};
  }
  log.finish(machine.exit() ? vmm::LogEnd::kMachineEnded : vmm::LogEnd::kStopped);
  return machine.exit().value_or(vmm::MachineExit{vmm::ExitReason::kRequested, ""});
}

// The recorded one, or the one given instead of it.
std::string choose(const std::string& given, const vmm::LoggedFile& recorded) {
  return given.empty() ? recorded.path : given;
}

void check_disks(const vmm::LogOrigin& origin, vmm::Backends& backends) {
  for (std::uint32_t i = 0; i < backends.disk_count(); ++i) {
    vmm::Image& image = backends.disk({i});
    if (image.size() != origin.config.disks[i].size || vmm::digest_of_image(image) != origin.disks[i].content) {
      throw UsageError("--disk " + image.path() + ": not as it was before the recording: give a copy from then");
    }
  }
}

// What is wrong, if an epoch does not do what the log says.
std::string replay_epoch(vmm::DeterministicMachine& machine, const vmm::LoggedEpoch& epoch,
                         const Interruption& interruption) {
  if (machine.exit()) return "the machine ended before it";
  for (;;) {
    const vmm::EpochEnd end = machine.replay_epoch(epoch.inputs);
    if (end.why == vmm::EpochEnd::Why::kDiverged) return end.divergence;
    if (end.why == vmm::EpochEnd::Why::kEpochEnd) return difference(epoch.digest, end.digest).value_or("");
    if (interruption.requested()) return "";
  }
}

int report_end(const vmm::EpochLogReader& log, std::uint64_t epochs) {
  switch (log.end()) {
    case vmm::LogEnd::kMachineEnded: spdlog::info("all {} epochs were the same; then the machine ended", epochs); break;
    case vmm::LogEnd::kStopped: spdlog::info("all {} epochs were the same; there the recording was stopped", epochs); break;
    case vmm::LogEnd::kCut:
      spdlog::error("the log was cut off: it ends behind byte {}, where {} epochs were the same", log.offset(), epochs);
      return kLogCutExit;
  }
  return 0;
}

}  // namespace

int record_run(const MachineOptions& options, const std::string& path, DiskUse disks) {
  SignalWatcher signals;
  Interruption interruption;
  const auto backends = options.host().open([&] { interruption.request(); }, disks);
  vmm::PassThroughInput input;
  vmm::PassThroughOutput output(*backends);
  const auto machine = options.boot_deterministic(*backends, input, output);
  vmm::EpochLogWriter log = for_option("--record", [&] {
    return vmm::EpochLogWriter(path, origin_of(options, machine->config(), *backends));
  });
  interruption.use(machine.get());
  signals.on_signal([&] { interruption.request(); });
  const vmm::MachineExit exit = record_epochs(*machine, options.epoch_length(), interruption, log);
  signals.disarm();
  for (std::uint32_t i = 0; i < backends->disk_count(); ++i) (void)backends->disk({i}).sync();
  return exit_code_of(exit, signals.received());
}

int replay_run(const MachineOptions& options, const std::string& path) {
  SignalWatcher signals;
  Interruption interruption;
  vmm::EpochLogReader log = for_option("--replay", [&] { return vmm::EpochLogReader(path); });
  const vmm::LogOrigin& origin = log.origin();
  const std::string kernel = choose(options.boot_source().kernel_path, origin.kernel);
  if (for_option("--kernel", [&] { return vmm::digest_of_file(kernel); }) != origin.kernel.content) {
    throw UsageError("--kernel " + kernel + ": not the one that was recorded");
  }
  std::vector<std::string> disks;
  for (const vmm::LoggedFile& disk : origin.disks) disks.push_back(disk.path);
  const auto backends = options.host().open_for_replay([&] { interruption.request(); }, disks, origin.config.nics.size());
  check_disks(origin, *backends);
  vmm::PassThroughInput input;
  vmm::PassThroughOutput output(*backends);
  const auto machine = vmm::DeterministicMachine::boot(origin.config, {kernel, "", origin.command_line}, *backends, input,
                                                       output, options.deterministic_options());
  interruption.use(machine.get());
  signals.on_signal([&] { interruption.request(); });
  std::uint64_t epochs = 0;
  while (const auto epoch = for_option("--replay", [&] { return log.next(); })) {
    const std::string how = replay_epoch(*machine, *epoch, interruption);
    if (interruption.requested()) break;
    if (!how.empty()) {
      spdlog::error("epoch {} differs: {}", epoch->number.value, how);
      return kDivergedExit;
    }
    ++epochs;
  }
  signals.disarm();
  if (!interruption.requested()) return report_end(log, epochs);
  spdlog::info("stopped; {} epochs were the same", epochs);
  return exit_code_of({vmm::ExitReason::kRequested, ""}, signals.received());
}

}  // namespace pollux::cli
