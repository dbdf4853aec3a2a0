#include "protocol/arbiter/arbiter.h"

#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include <future>
#include <thread>

#include "protocol/arbiter/bounded_arbiter.h"
#include "protocol/arbiter/claim_directory.h"
#include "protocol/arbiter/etcd_claims.h"

namespace pollux::protocol {
namespace {

// No arbiter: for experiments, and for whoever fences the other host by other means.
class NoArbiter final : public Arbiter {
 public:
  NoArbiter() { spdlog::warn("no arbiter: when the link fails while both hosts live, there can be two primaries"); }
  [[nodiscard]] Verdict claim(const TermClaim&) override { return Verdict::kWon; }
  [[nodiscard]] std::string last_reason() const override { return {}; }
  [[nodiscard]] std::string name() const override { return "none"; }
};

// Opening may hang as every later call may; then the thread is left, as in BoundedArbiter.
std::shared_ptr<ClaimDirectory> open_in_time(const std::string& path, std::chrono::milliseconds timeout) {
  std::packaged_task<std::shared_ptr<ClaimDirectory>()> open(
      [path] { return std::make_shared<ClaimDirectory>(path); });
  auto opened = open.get_future();
  std::thread(std::move(open)).detach();
  if (opened.wait_for(timeout) != std::future_status::ready) {
    throw UsageError(fmt::format("arbiter directory {} does not answer within {} ms", path, timeout.count()));
  }
  return opened.get();
}

void refuse_etcd_options(const ArbiterOptions& options, const std::string& kind) {
  for (const std::string* text : {&options.etcd_ca_file, &options.etcd_certificate_file,
                                  &options.etcd_key_file, &options.etcd_user, &options.etcd_password_file}) {
    if (!text->empty()) throw UsageError(fmt::format("arbiter '{}' takes no etcd options", kind));
  }
}

}  // namespace

std::unique_ptr<Arbiter> make_arbiter(const std::string& spec, const ArbiterOptions& options) {
  if (options.timeout <= std::chrono::milliseconds::zero())
    throw UsageError("the arbiter's timeout is not positive");
  const std::size_t colon = spec.find(':');
  const std::string kind = spec.substr(0, colon);
  const std::string where = colon == std::string::npos ? "" : spec.substr(colon + 1);
  if (kind == "etcd") {
    return std::make_unique<BoundedArbiter>(spec, make_etcd_claims(parse_etcd_urls(where), options),
                                            options.timeout);
  }
  if (kind == "file") {
    refuse_etcd_options(options, kind);
    if (!where.starts_with('/')) {
      throw UsageError(
          fmt::format("arbiter '{}': the directory must be an absolute path (write file:/DIRECTORY)", spec));
    }
    return std::make_unique<BoundedArbiter>(spec, open_in_time(where, options.timeout), options.timeout);
  }
  if (spec == "none") {
    refuse_etcd_options(options, kind);
    return std::make_unique<NoArbiter>();
  }
  throw UsageError(
      fmt::format("arbiter '{}' is none of file:/DIRECTORY, etcd:URL[,URL...] and none", quoted(spec)));
}

}  // namespace pollux::protocol
