// The timeline of a failover: who waits for its last line finds all of the file.
#include <gmock/gmock.h>
#include <spdlog/sinks/base_sink.h>
#include <spdlog/spdlog.h>

#include <boost/json.hpp>
#include <filesystem>
#include <fstream>
#include <functional>

#include "backup/failover.h"
#include "tests/support/temporary_folder.h"
#include "vmm/gates/pass_through.h"
#include "vmm/machine/backends.h"

namespace pollux::backup {
namespace {

std::string text_of(const std::string& path) {
  std::ifstream file(path);
  return {std::istreambuf_iterator<char>(file), {}};
}

// Looks at each line as it is logged.
class Watcher final : public spdlog::sinks::base_sink<std::mutex> {
 public:
  explicit Watcher(std::function<void(const std::string& line)> look) : look_(std::move(look)) {}

 private:
  void sink_it_(const spdlog::details::log_msg& message) override { look_({message.payload.begin(), message.payload.end()}); }
  void flush_() override {}

  std::function<void(const std::string&)> look_;
};

// The default logger, replaced for a test.
class Logged {
 public:
  explicit Logged(std::function<void(const std::string& line)> look) : before_(spdlog::default_logger()) {
    spdlog::set_default_logger(std::make_shared<spdlog::logger>("watched", std::make_shared<Watcher>(std::move(look))));
  }
  ~Logged() { spdlog::set_default_logger(before_); }
  Logged(const Logged&) = delete;
  Logged& operator=(const Logged&) = delete;

 private:
  std::shared_ptr<spdlog::logger> before_;
};

TEST(FailoverReport, TheFileIsWholeWhenTheLogSaysThatTheMachineRuns) {
  const testing::TemporaryFolder folder;
  const std::string path = folder.path_of("timeline.json");
  std::ofstream(path).close();  // as the command leaves it when it tries whether it can be written
  vmm::Backends backends({}, {}, vmm::open_console("none", [] {}), vmm::open_console("none", [] {}));
  vmm::PassThroughOutput gate(backends);
  PromotedOutput output(gate);
  FailoverTimeline timeline{};
  timeline.epoch = {42};
  timeline.reason = "silence";

  std::string at_the_line;
  {
    const Logged logged([&](const std::string& line) {
      if (line.find("runs unprotected now") != std::string::npos) at_the_line = text_of(path);
    });
    FailoverReport report(output, false, path);
    report.finish(timeline);
  }
  ASSERT_FALSE(at_the_line.empty());
  EXPECT_EQ(boost::json::parse(at_the_line).at("epoch").to_number<int>(), 42);
  EXPECT_EQ(at_the_line, timeline.json());
  EXPECT_FALSE(std::filesystem::exists(path + ".partial"));
}

}  // namespace
}  // namespace pollux::backup
