#include "cli/arbiter_options.h"

#include <spdlog/spdlog.h>

#include <CLI/CLI.hpp>
#include <memory>

#include "base/error.h"
#include "cli/host_options.h"

namespace pollux::cli {

void ArbiterOptions::add_to(CLI::App& app) {
  app.add_option("--arbiter", spec_,
                 "who decides when replicas lose each other: file:/DIRECTORY on storage that all see, etcd:URL[,URL...], "
                 "or none (then a cut link makes two machines); the same for all replicas")
      ->required()
      ->type_name("SPEC");
  app.add_option("--arbiter-timeout-ms", timeout_ms_, "one question to the arbiter; it is asked again")
      ->capture_default_str();
  app.add_option("--etcd-prefix", options_.etcd_prefix, "keys are PREFIX/MACHINE/TERM")->capture_default_str();
  app.add_option("--etcd-ca", options_.etcd_ca_file, "certificate authorities for https, PEM")->type_name("FILE");
  app.add_option("--etcd-cert", options_.etcd_certificate_file, "client certificate, PEM")->type_name("FILE");
  app.add_option("--etcd-key", options_.etcd_key_file, "its secret key, PEM")->type_name("FILE");
  app.add_option("--etcd-user", options_.etcd_user, "user name");
  app.add_option("--etcd-password-file", options_.etcd_password_file, "the user's password, one line, mode 600")
      ->type_name("FILE");
}

protocol::Claim ArbiterOptions::open() const {
  if (timeout_ms_ < 1 || timeout_ms_ > kMaxMilliseconds) throw UsageError("--arbiter-timeout-ms: expected 1 to 86400000");
  protocol::ArbiterOptions options = options_;
  options.timeout = std::chrono::milliseconds(timeout_ms_);
  const auto arbiter = std::shared_ptr<protocol::Arbiter>(
      for_option("--arbiter", [&] { return protocol::make_arbiter(spec_, options); }));
  return [arbiter](const protocol::TermClaim& claim) {
    const protocol::Verdict verdict = arbiter->claim(claim);
    if (verdict == protocol::Verdict::kWon) {
      spdlog::info("arbiter {}: term {} is this replica's", arbiter->name(), to_string(claim.term));
    } else {
      spdlog::warn("arbiter {}: {}", arbiter->name(), arbiter->last_reason());
    }
    return verdict;
  };
}

}  // namespace pollux::cli
