#include "backup/failover.h"
#include "vmm/make_machine.h"

#include <fmt/format.h>

#include <spdlog/spdlog.h>

#include <boost/json.hpp>
#include <cstdio>
#include <fstream>
#include <utility>

namespace pollux::backup {
namespace {

double milliseconds(protocol::TimePoint from, protocol::TimePoint to) {
  return std::chrono::duration<double, std::milli>(to - from).count();
}

// Nobody ever sees a part of it.
bool replace_file(const std::string& path, const std::string& text) {
  const std::string partial = path + ".partial";
  {
    std::ofstream file(partial, std::ios::trunc);
    file << text;
    if (!file.flush()) return false;
  }
  return std::rename(partial.c_str(), path.c_str()) == 0;
}

}  // namespace

void rehearse_restore(const vmm::MachineConfig& config, ByteView state, vmm::Backends& backends) {
  vmm::PassThroughInput input;
  vmm::PassThroughOutput output(backends);
  // Never resumed: it listens to no backend, and its memory, which nothing touches, is never allocated.
  (void)vmm::restore_machine(config, std::make_unique<vmm::GuestMemory>(config.memory_bytes), state, backends, input,
                              output);
}

std::unique_ptr<vmm::Machine> Promotion::restore(vmm::Backends& backends, vmm::InputGate& input,
                                                 PromotedOutput& output) {
  std::unique_ptr<vmm::Machine> machine;
  if (executing) {
    executing->input.promote();  // P3 is over
    executing->gate.promote(output);
    if (uncertain_io) executing->machine->promote();  // P7
    machine = std::move(executing->machine);
  } else {
    machine = vmm::restore_machine(config, std::move(memory), state, backends, input, output,
                                   {.dirty_log = vmm::DirtyLog::kBitmap, .epoch_length = epoch_length});
  }
  timeline.promoted = std::chrono::steady_clock::now();
  machine->announce();
  output.watch_for_first_frame();
  return machine;
}

FailoverReport::FailoverReport(const PromotedOutput& output, bool may_send, std::string path)
    : output_(output), may_send_(may_send), path_(std::move(path)) {}

void FailoverReport::look(FailoverTimeline& timeline, const vmm::Machine& machine) {
  constexpr auto kLongestWait = std::chrono::seconds(5);
  if (told_) return;
  timeline.first_entry = machine.first_entry();
  timeline.first_frame = output_.first_frame();
  const bool complete = timeline.first_entry && (timeline.first_frame || !may_send_);
  if (complete || std::chrono::steady_clock::now() - timeline.promoted > kLongestWait) tell(timeline);
}

void FailoverReport::finish(const FailoverTimeline& timeline) {
  if (!told_) tell(timeline);
}

// The file before the log: who waits for the line finds all of the file.
void FailoverReport::tell(const FailoverTimeline& timeline) {
  told_ = true;
  if (!path_.empty() && !replace_file(path_, timeline.json())) spdlog::error("--timeline: cannot write {}", path_);
  spdlog::warn("{}", timeline.text());
  spdlog::warn("this machine runs unprotected now");
}

std::string FailoverTimeline::text() const {
  const auto line = [&](protocol::TimePoint at, const std::string& what) {
    return fmt::format("  {:>9.1f} ms  {}\n", milliseconds(last_heard, at), what);
  };
  std::string text = fmt::format("failover at the end of epoch {} ({})\n", epoch.value, reason);
  text += line(epoch_received, fmt::format("record of epoch {} was whole", epoch.value));
  text += line(last_heard, "last byte heard of the primary");
  text += line(detected, "primary declared lost");
  text += line(promoted, "promoted: machine restored");
  if (first_entry) text += line(*first_entry, "first vCPU entry");
  if (first_frame) text += line(*first_frame, "first frame sent by the guest");
  text.pop_back();
  return text;
}

std::string FailoverTimeline::json() const {
  boost::json::object object;
  object["epoch"] = epoch.value;
  object["reason"] = reason;
  object["epoch_received_ms"] = milliseconds(last_heard, epoch_received);
  object["detected_ms"] = milliseconds(last_heard, detected);
  object["promoted_ms"] = milliseconds(last_heard, promoted);
  if (first_entry) object["first_entry_ms"] = milliseconds(last_heard, *first_entry);
  if (first_frame) object["first_frame_ms"] = milliseconds(last_heard, *first_frame);
  return boost::json::serialize(object) + "\n";
}

}  // namespace pollux::backup
