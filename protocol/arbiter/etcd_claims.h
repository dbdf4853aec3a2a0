// Claims as keys of an etcd cluster, through its JSON gateway (etcd 3.4 or later, documentation "gRPC
// gateway").
//
// The winner of a term is the value of one key, `<prefix>/<vm>/<term as 20 digits>`: the winner's ReplicaId
// as 32 hexadecimal digits. A claim is one transaction (POST /v3/kv/txn):
//
//   if    no key of the vm from term t on exists, and the key of t-1 does (or t is 1)
//   then  put the key of t
//   else  get the highest key of the vm from term t on, and the key of t-1
//
// etcd applies a transaction that may write at one point of its log, on a majority and durably, before it
// answers (documentation "KV API guarantees": linearizable). That point decides that t is free, that no
// higher term was won and that t-1 was. A transaction that is applied late or twice changes nothing: the
// second time its condition is false and the value says who won.
//
// Nothing an endpoint sends can do more than make the claim unreachable, except to lie about the result: use
// https:// where somebody could.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "protocol/arbiter/arbiter.h"
#include "protocol/arbiter/decider.h"
#include "protocol/arbiter/etcd_url.h"

namespace pollux::protocol {

// Endpoints are tried in order; each may use an equal share of the time that is left. A failed one is tried
// again with the next claim. A name server that hangs can use up the time of all. Connections and
// authentication tokens are not kept: claims are rare. Throws UsageError.
[[nodiscard]] std::shared_ptr<Decider> make_etcd_claims(const std::vector<EtcdUrl>& urls,
                                                        const ArbiterOptions& options);

}  // namespace pollux::protocol
