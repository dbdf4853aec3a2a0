// Shows the statistics while the machine runs: a live line on a terminal, a JSON file for programs.
#pragma once

#include <condition_variable>
#include <mutex>
#include <string>
#include <thread>

#include "primary/statistics.h"

namespace pollux::primary {

// Reports once a second from a thread of its own, and once more at destruction.
class StatusReporter {
 public:
  StatusReporter(const Statistics& statistics, std::string json_path, bool status_line);
  ~StatusReporter();

 private:
  void run();
  void report();

  const Statistics& statistics_;
  const std::string json_path_;
  const bool status_line_;
  bool write_failed_ = false;
  std::mutex mutex_;
  std::condition_variable changed_;
  bool stopping_ = false;
  std::thread thread_;
};

}  // namespace pollux::primary
