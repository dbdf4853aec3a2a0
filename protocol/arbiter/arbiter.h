// Who may lead a machine: the one decision that replicas which cannot hear each other must not take alone.
//
// A replica that wants to go on without its peers claims the next term at an arbiter that both can reach. An
// arbiter is a test-and-set object per (machine, term) and nothing more: it observes no replica, grants no
// lease and reads no clock (timeouts bound how long a caller waits, never what is decided). What every kind
// but `none` promises, whatever crashes and however messages are lost, delayed or repeated:
//
// - At most one claimant ever wins a term: the first whose claim is registered. Asking again, the winner gets
//   kWon again (its answer may have been lost); everybody else gets kLost.
// - Terms are won in sequence from 1, without gaps: term t can be won only when t-1 has been and no higher
//   one has, and both are decided in the same atomic step as the winner. So a stale replica never wins a term
//   that the machine has passed by, and whoever claims too far ahead loses.
// - kLost is final, but for a claim too far ahead, whose turn may come. A winner that asks for its term again
//   after a higher one was won is told kLost, too: it must not lead any more.
// - A claim names members: the backups that its claimant goes on with. Who claims a term that is not to be won any more
//   and is a member of the last term won is told kMember instead of kLost. Members are what the claim said that won;
//   a repeated one changes nothing.
// - kUnreachable decides nothing and says nothing: the claim may have been registered, and may still be.
//   Only the same claimant asking for the same term again finds out.
#pragma once

#include <chrono>
#include <memory>
#include <string>

#include "base/error.h"
#include "protocol/claim.h"

namespace pollux::protocol {

class Arbiter {
 public:
  Arbiter() = default;
  Arbiter(const Arbiter&) = delete;
  Arbiter& operator=(const Arbiter&) = delete;
  virtual ~Arbiter() = default;

  // Answers within the timeout of the options. Never throws; several threads may claim at once.
  [[nodiscard]] virtual Verdict claim(const TermClaim& claim) = 0;

  // Why the claim that answered last did not win, in one line: who holds the term, or what is out of reach.
  // Empty when it won.
  [[nodiscard]] virtual std::string last_reason() const = 0;

  // The kind and where it is, for logs: "file:/srv/pollux-claims".
  [[nodiscard]] virtual std::string name() const = 0;
};

// Of what belongs to etcd, nothing may be set for the other kinds.
struct ArbiterOptions {
  std::chrono::milliseconds timeout = std::chrono::seconds(5);  // of one claim, all endpoints together

  std::string etcd_prefix = "/pollux";  // keys are <prefix>/<vm>/<term>
  std::string etcd_ca_file{};           // PEM; empty: the system's authorities
  std::string etcd_certificate_file{};  // PEM, the client's certificate and its key: both or neither
  std::string etcd_key_file{};
  std::string etcd_user{};           // empty: no authentication
  std::string etcd_password_file{};  // one line; not readable by others
};

// `spec` is one of
//   file:/DIRECTORY         on storage that all replicas' hosts see
//   etcd:URL[,URL...]       one etcd cluster; http://HOST[:PORT] or https://HOST[:PORT], port 2379 by default
//   none                    everybody wins
//
// Throws UsageError naming what is wrong: an unknown kind, a directory that is missing or cannot hold claims,
// a bad URL, an unreadable file. Does not talk to etcd yet: a replica may start while it is away.
[[nodiscard]] std::unique_ptr<Arbiter> make_arbiter(const std::string& spec,
                                                    const ArbiterOptions& options = {});

}  // namespace pollux::protocol
