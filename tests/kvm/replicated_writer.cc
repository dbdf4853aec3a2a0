// A primary to be killed: runs the page_writer guest, protected by the backups at these ports of loopback. Once the
// first epoch is committed by all, its endless kMix computation begins; once that is part of a committed epoch, "protected" is
// printed: however long the full sync took, the computation lies ahead. "committed without a backup" is printed once one
// was lost and an epoch was committed after that.
#include <spdlog/sinks/stdout_sinks.h>
#include <spdlog/spdlog.h>

#include <cstdio>
#include <cstdlib>
#include <optional>
#include <sstream>
#include <string>
#include <thread>

#include "base/error.h"
#include "primary/epoch_engine.h"
#include "primary/primary.h"
#include "tests/support/test_machine.h"
#include "vmm/make_machine.h"

int main(int argc, char** argv) {
  using namespace pollux;
  using namespace std::chrono_literals;
  if (argc != 7) {
    std::fprintf(stderr, "usage: replicated_writer PORT[,PORT...] SECRET-KEY PEER-KEY MEMORY-MIB PAGES SEED\n");
    return 2;
  }
  spdlog::set_default_logger(spdlog::stderr_logger_mt("primary"));  // standard output is for the test
  const auto number = [&](int i) { return std::strtoull(argv[i], nullptr, 10); };
  try {
    protocol::session::initialize_crypto();
    const auto key = protocol::session::load_secret_key(argv[2]);
    primary::PrimaryOptions options;
    std::istringstream ports(argv[1]);
    for (std::string port; std::getline(ports, port, ',');) {
      options.backups.push_back(
          {protocol::parse_address("127.0.0.1:" + port), protocol::session::load_public_key(argv[3])});
    }
    options.epoch_length = 10ms;
    options.silence_timeout = 20s;
    primary::Primary* running = nullptr;
    vmm::Machine* machine = nullptr;
    options.on_turn = [&, begun = std::optional<std::uint64_t>(), told = false](const vmm::Machine&) mutable {
      const std::uint64_t committed = running->statistics().summary().committed.value;
      if (committed == 0 || told) return;
      if (!begun) {
        testing::PageWriter(machine->memory()).request(guests::WriterMode::kMix, number(5), number(6), guests::kEndless);
        begun = committed;
      }
      // The epoch that runs now, at the latest.
      if (committed <= *begun + primary::kMaxEpochsInFlight) return;
      told = true;
      std::puts("protected");
      std::fflush(stdout);
    };
    primary::Primary primary(options);
    running = &primary;
    const auto backends = testing::no_backends();
    vmm::PassThroughInput input;
    std::thread([&] {
      const auto summary = [&] { return primary.statistics().summary(); };
      const std::size_t backups = options.backups.size();
      while (summary().committed.value == 0) std::this_thread::sleep_for(1ms);
      while (summary().backups == backups) std::this_thread::sleep_for(1ms);
      const auto committed = summary().committed;
      while (summary().committed == committed) std::this_thread::sleep_for(1ms);
      std::puts("committed without a backup");
      std::fflush(stdout);
    }).detach();
    (void)primary.run(key, *backends, [&](vmm::OutputGate& output) {
      auto made = vmm::boot_machine(testing::page_writer_config(number(4) << 20), testing::page_writer_source(),
                                     *backends, input, output);
      machine = made.get();
      return made;
    });
    return 0;
  } catch (const Error& error) {
    std::fprintf(stderr, "replicated_writer: %s\n", error.what());
    return 1;
  }
}
