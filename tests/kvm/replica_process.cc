// A replica to be killed, of a machine that moves between two hosts: both are this host, each has its key and its port of
// loopback. Runs the page_writer guest's endless kMix computation as the primary, or joins as a backup and becomes the primary.
//
// At SIGUSR1 the leading one hands the machine over, and joins the other as its backup. At SIGUSR2 it ends the computation.
// With POLLUX_DIES_WITH_TERM=N in its environment it dies by SIGKILL when the arbiter has decided its claim of term N, and
// before it knows.
//
// Prints a line for each of these, as it happens: "protecting", as a backup; "protected" and "unprotected"; "backups N", that
// can take over, when they have committed an epoch that was begun since, and so know of everything before; "switching at T", the order to hand over;
// "switched, standing still for T", until the other had won the term; "promoted"; "entered at T", the guest runs here;
// "ended after N", the computation's steps, and "checksum N". Times are the monotonic clock's microseconds.
#include <fmt/format.h>
#include <signal.h>
#include <spdlog/sinks/stdout_sinks.h>
#include <spdlog/spdlog.h>

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <optional>
#include <stop_token>
#include <string>
#include <thread>
#include <utility>

#include "backup/backup.h"
#include "base/error.h"
#include "primary/primary.h"
#include "protocol/arbiter/arbiter.h"
#include "tests/support/test_machine.h"
#include "vmm/make_machine.h"

namespace pollux::testing {
namespace {

using namespace std::chrono_literals;

constexpr const char* kUsage =
    "usage: replica_process lead OWN-PORT SECRET-KEY PEER-KEY CLAIMS MEMORY-MIB PAGES SEED PEER-PORT\n"
    "       replica_process join OWN-PORT SECRET-KEY PEER-KEY CLAIMS PEER-PORT\n";

std::atomic<bool> switch_wanted = false;
std::atomic<bool> finish_wanted = false;

long long microseconds(std::chrono::steady_clock::time_point at) {
  return std::chrono::duration_cast<std::chrono::microseconds>(at.time_since_epoch()).count();
}

void say(const std::string& line) {
  std::puts(line.c_str());
  std::fflush(stdout);
}

protocol::Claim file_arbiter(const std::string& folder) {
  const auto arbiter = std::shared_ptr<protocol::Arbiter>(protocol::make_arbiter("file:" + folder, {}));
  const char* dies_with_term = std::getenv("POLLUX_DIES_WITH_TERM");
  return [arbiter, last = dies_with_term == nullptr ? 0 : std::strtoull(dies_with_term, nullptr, 10)](const protocol::TermClaim& claim) {
    const protocol::Verdict verdict = arbiter->claim(claim);
    if (claim.term.value == last) ::raise(SIGKILL);
    return verdict;
  };
}

class Replica {
 public:
  explicit Replica(char** argv)
      : own_{"127.0.0.1", port(argv[2])},
        key_(protocol::session::load_secret_key(argv[3])),
        peer_(protocol::session::load_public_key(argv[4])),
        claim_(file_arbiter(argv[5])) {}

  void lead(std::uint64_t memory_mib, std::uint64_t pages, std::uint64_t seed) {
    primary::PrimaryOptions options = primary_options();
    options.listener = std::make_shared<protocol::Listener>(own_, key_, std::vector{peer_});
    run(std::move(options), [&](vmm::OutputGate& gate) {
      auto machine = vmm::boot_machine(page_writer_config(memory_mib << 20), page_writer_source(), *backends_, input_, gate);
      PageWriter(machine->memory()).request(guests::WriterMode::kMix, pages, seed, guests::kEndless);
      return machine;
    });
  }

  // As long as it hands over each time it leads.
  void follow(std::uint16_t peer_port) {
    while (handed_over_) join(peer_port);
  }

  void join(std::uint16_t peer_port) {
    backup::BackupOptions options;
    options.listen = own_;
    options.join = {{{"127.0.0.1", peer_port}, peer_}};
    options.primary_keys = {peer_};
    options.silence_timeout = 20s;
    options.claim = claim_;
    backup::Backup backup(options, key_);
    std::jthread watch([&](const std::stop_token& ended) {
      while (!ended.stop_requested() && backup.status().state != "protecting") std::this_thread::sleep_for(300us);
      if (!ended.stop_requested()) say("protecting");
    });
    backup::BackupEnd end = backup.run(*backends_);
    watch = {};
    if (!end.promotion) throw Error(end.reason);
    backup::Promotion& promotion = *end.promotion;
    primary::PrimaryOptions as_primary = primary_options();
    as_primary.listener = promotion.listener;
    as_primary.succession = primary::Succession{promotion.vm, promotion.term, promotion.timeline.epoch};
    std::optional<backup::PromotedOutput> output;
    run(std::move(as_primary), [&](vmm::OutputGate& gate) {
      output.emplace(gate);
      auto machine = promotion.restore(*backends_, input_, *output);
      say("promoted");
      return machine;
    });
  }

  static std::uint16_t port(const char* text) { return static_cast<std::uint16_t>(std::atoi(text)); }

 private:
  primary::PrimaryOptions primary_options() const {
    primary::PrimaryOptions options;
    options.epoch_length = 10ms;
    options.silence_timeout = 20s;
    options.claim = claim_;
    return options;
  }

  void run(primary::PrimaryOptions options, const primary::Primary::MakeMachine& make_machine) {
    vmm::Machine* machine = nullptr;
    bool told = false;
    options.on_turn = [&, entered = false](const vmm::Machine& running) mutable {
      if (const auto at = running.first_entry(); at && !std::exchange(entered, true)) {
        say(fmt::format("entered at {}", microseconds(*at)));
      }
      PageWriter writer(machine->memory());
      if (finish_wanted.exchange(false)) writer.finish();
      if (told || !writer.served()) return;
      told = true;
      say(fmt::format("ended after {}", writer.steps()));
      say(fmt::format("checksum {}", writer.checksum()));
    };
    primary::Primary primary(std::move(options));
    handed_over_ = false;
    const std::jthread watch([&](const std::stop_token& ended) {
      std::optional<protocol::EpochId> changed_in;
      for (std::size_t backups = 0; !ended.stop_requested(); std::this_thread::sleep_for(300us)) {
        const primary::Summary now = primary.statistics().summary();
        if (const std::size_t before = std::exchange(backups, now.backups); before != now.backups) {
          // From the first epoch on that a backup holds.
          if (before == 0 || now.backups == 0) say(now.backups > 0 ? "protected" : "unprotected");
          changed_in = now.closed;
        }
        if (changed_in && (now.backups == 0 || now.committed > changed_in->next())) {
          changed_in.reset();
          say(fmt::format("backups {}", now.backups));
        }
        if (!switch_wanted.exchange(false)) continue;
        say(fmt::format("switching at {}", microseconds(std::chrono::steady_clock::now())));
        try {
          const auto done = primary.switch_over({});
          say(fmt::format("switched, standing still for {}", done.stood_still / 1us));
        } catch (const Error& error) {
          say(std::string("not switched: ") + error.what());
        }
      }
    });
    (void)primary.run(key_, *backends_, [&](vmm::OutputGate& gate) {
      auto made = make_machine(gate);
      machine = made.get();
      return made;
    });
    handed_over_ = primary.handed_over();
  }

  const protocol::Address own_;
  const protocol::session::SecretKey key_;
  const protocol::session::PublicKey peer_;
  const protocol::Claim claim_;
  const std::unique_ptr<vmm::Backends> backends_ = no_backends();
  vmm::PassThroughInput input_;
  bool handed_over_ = false;
};

int run(int argc, char** argv) {
  const std::string role = argc > 1 ? argv[1] : "";
  if (!(role == "lead" && argc == 10) && !(role == "join" && argc == 7)) {
    std::fputs(kUsage, stderr);
    return 2;
  }
  // Standard output is for the test.
  spdlog::set_default_logger(spdlog::stderr_logger_mt(fmt::format("{} at port {}", role, argv[2])));
  try {
    protocol::session::initialize_crypto();
    Replica replica(argv);
    const auto number = [&](int i) { return std::strtoull(argv[i], nullptr, 10); };
    ::signal(SIGUSR1, [](int) { switch_wanted = true; });
    ::signal(SIGUSR2, [](int) { finish_wanted = true; });
    const std::uint16_t peer_port = Replica::port(argv[argc - 1]);
    if (role == "lead") replica.lead(number(6), number(7), number(8));
    if (role == "join") replica.join(peer_port);
    replica.follow(peer_port);
    return 0;
  } catch (const Error& error) {
    std::fprintf(stderr, "replica_process: %s\n", error.what());
    return 1;
  }
}

}  // namespace
}  // namespace pollux::testing

int main(int argc, char** argv) { return pollux::testing::run(argc, argv); }
