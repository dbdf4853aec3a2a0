#include "primary/status_reporter.h"

#include <spdlog/spdlog.h>

#include <chrono>
#include <cstdio>

#include "base/error.h"

namespace pollux::primary {

StatusReporter::StatusReporter(const Statistics& statistics, std::string json_path, bool status_line)
    : statistics_(statistics), json_path_(std::move(json_path)), status_line_(status_line), thread_([this] { run(); }) {}

StatusReporter::~StatusReporter() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  changed_.notify_all();
  thread_.join();
  report();
  if (status_line_) std::fputc('\n', stderr);
}

void StatusReporter::run() {
  std::unique_lock lock(mutex_);
  while (!changed_.wait_for(lock, std::chrono::seconds(1), [&] { return stopping_; })) report();
}

void StatusReporter::report() {
  if (status_line_) {
    std::fprintf(stderr, "\r\033[K%s", statistics_.status_line().c_str());
    std::fflush(stderr);
  }
  if (json_path_.empty() || write_failed_) return;
  try {
    statistics_.write(json_path_);
  } catch (const Error& error) {
    write_failed_ = true;  // said once; the machine matters more
    spdlog::error("--stats: {}", error.what());
  }
}

}  // namespace pollux::primary
