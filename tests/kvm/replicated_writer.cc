// A primary to be killed: runs the page_writer guest's kMix computation, protected by the backup at a port of
// loopback. Prints "protected" once the first epoch is committed.
#include <spdlog/sinks/stdout_sinks.h>
#include <spdlog/spdlog.h>

#include <cstdio>
#include <cstdlib>
#include <thread>

#include "base/error.h"
#include "primary/primary.h"
#include "tests/support/test_machine.h"

int main(int argc, char** argv) {
  using namespace pollux;
  using namespace std::chrono_literals;
  if (argc != 8) {
    std::fprintf(stderr, "usage: replicated_writer PORT SECRET-KEY PEER-KEY MEMORY-MIB PAGES SEED STEPS\n");
    return 2;
  }
  spdlog::set_default_logger(spdlog::stderr_logger_mt("primary"));  // standard output is for the test
  const auto number = [&](int i) { return std::strtoull(argv[i], nullptr, 10); };
  try {
    protocol::session::initialize_crypto();
    const auto key = protocol::session::load_secret_key(argv[2]);
    primary::PrimaryOptions options;
    options.backups.push_back({{"127.0.0.1", static_cast<std::uint16_t>(number(1))},
                               protocol::session::load_public_key(argv[3])});
    options.epoch_length = 10ms;
    options.silence_timeout = 20s;
    primary::Primary primary(options);
    primary.connect(key);
    const auto backends = testing::no_backends();
    vmm::PassThroughInput input;
    std::thread([&] {
      while (primary.statistics().summary().committed.value == 0) std::this_thread::sleep_for(1ms);
      std::puts("protected");
      std::fflush(stdout);
    }).detach();
    (void)primary.run(*backends, [&](vmm::OutputGate& output) {
      auto machine = vmm::Machine::boot(testing::page_writer_config(number(4) << 20), testing::page_writer_source(),
                                        *backends, input, output);
      testing::PageWriter(machine->memory()).request(guests::WriterMode::kMix, number(5), number(6), number(7));
      return machine;
    });
    return 0;
  } catch (const Error& error) {
    std::fprintf(stderr, "replicated_writer: %s\n", error.what());
    return 1;
  }
}
