// Guests, their runtime and the counter, on the smallest machine that runs them.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/support/epoch_machine.h"
#include "tests/support/test_machine.h"

namespace pollux::testing {
namespace {

using ::testing::HasSubstr;

class GuestRuntime : public ::testing::Test {
 protected:
  void SetUp() override {
    if (const std::string why = why_no_kvm(); !why.empty()) GTEST_SKIP() << why;
  }

  static EpochMachineConfig guest(const char* name, const std::string& command_line = "") {
    EpochMachineConfig config;
    config.kernel = std::string(POLLUX_GUESTS) + "/" + name;
    config.command_line = command_line;
    return config;
  }
  static EpochMachineResult run(const EpochMachineConfig& config) { return EpochMachine(config).run(); }
};

TEST_F(GuestRuntime, ComputesTheSameWhateverTheEpochs) {
  std::string console;
  for (const std::uint64_t length : {10'007u, 100'003u, 1'000'000u}) {
    EpochMachineConfig config = guest("compute");
    config.epoch_length = length;
    const EpochMachineResult result = run(config);
    EXPECT_EQ(result.failure, "");
    EXPECT_EQ(result.exit_code, 0u) << result.console;
    EXPECT_THAT(result.console, HasSubstr("pointer_chase 0x"));
    if (console.empty()) console = result.console;
    EXPECT_EQ(result.console, console);
    RecordProperty("epochs_" + std::to_string(length), std::to_string(result.epochs));
    std::printf("%llu sites an epoch: %llu epochs\n", static_cast<unsigned long long>(length),
                static_cast<unsigned long long>(result.epochs));
  }
  std::fputs(console.c_str(), stdout);
}

}  // namespace
}  // namespace pollux::testing
