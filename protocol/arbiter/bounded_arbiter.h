// An arbiter that answers in time although its storage hangs.
//
// A system call on a dead network file system can block for ever and cannot be interrupted, and so can a name
// server. Each decision therefore runs on a thread of its own. When it does not come in time the caller gets
// kUnreachable and the thread is left to finish: it is detached and belongs to nobody. It holds the decider
// (by shared pointer) and its own result, touches nothing else, and ends with its system call or with the
// process. Its claim may still be registered by then. At most kMaxAbandoned such threads are left at a time:
// with as many, claims are kUnreachable at once.
#pragma once

#include <chrono>
#include <memory>
#include <mutex>
#include <string>

#include "protocol/arbiter/arbiter.h"
#include "protocol/arbiter/decider.h"

namespace pollux::protocol {

class BoundedArbiter final : public Arbiter {
 public:
  static constexpr unsigned kMaxAbandoned = 4;

  BoundedArbiter(std::string name, std::shared_ptr<Decider> decider, std::chrono::milliseconds timeout);

  [[nodiscard]] Verdict claim(const TermClaim& claim) override;
  [[nodiscard]] std::string last_reason() const override;
  [[nodiscard]] std::string name() const override { return name_; }

  // Decisions that ran out of time and have not come to an end yet.
  [[nodiscard]] unsigned abandoned() const;

 private:
  struct Abandoned;

  [[nodiscard]] Decision decide(const TermClaim& claim);

  const std::string name_;
  const std::shared_ptr<Decider> decider_;
  const std::chrono::milliseconds timeout_;
  const std::shared_ptr<Abandoned> abandoned_;
  mutable std::mutex mutex_;
  std::string last_reason_;  // guarded by mutex_
};

}  // namespace pollux::protocol
