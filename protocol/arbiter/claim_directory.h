// Claims as files in a directory on storage that all replicas' hosts see (NFS, a cluster file system).
//
// The winner of a term is the content of one file, `<vm>.<term as 20 digits>`: the winner's ReplicaId and
// those of its members in one line. Claim files are never changed, renamed or removed by anybody. To claim term t:
//
//   1. Read the directory: with a file of a higher term the claim is lost.
//   2. If the file of t exists, its content decides. If that of t-1 does not (and t > 1), the claim is lost.
//   3. Write a candidate, a temporary file of unique name, and fsync it.
//   4. link(2) the candidate to the name of t. link is atomic and fails when the name exists, on NFS as well.
//   5. fsync the directory, and only then answer that the claim is won. (That makes the links before durable
//      as well. One that a crash of the storage undoes was never answered with "won".)
//
// Why no stale claim is won: a file t is made only after t-1 was seen, and files stay. So the files that
// exist are always 1..n without a gap, and if any higher term had been won, the file of t would exist as
// well: the link in 4, which needs it not to, is the one atomic step that decides both that t is free and
// that no higher term was won. What 1 and 2 have seen cannot become untrue before 4. (Step 1 is for the
// winner of t that asks again when it was passed by, and a second line of defence if somebody has removed old
// files.)
//
// Why a candidate and not O_EXCL: a file that appears by link is whole and durable, so a crash at any point
// leaves either no decision or a complete one; and an NFS client that retransmits a link whose answer was
// lost is told EEXIST or an I/O error for its own success. The link count of the candidate (2) and the
// content of the claim tell the truth then (link(2), open(2), NOTES on O_EXCL).
//
// The directory is opened once and held: when it is unmounted or replaced, claims do not go astray in what
// lies below.
#pragma once

#include <optional>
#include <string>

#include "base/fd.h"
#include "protocol/arbiter/decider.h"

namespace pollux::protocol {

class ClaimDirectory final : public Decider {
 public:
  // Opens `path` and tries that it can hold claims. May block. Throws UsageError.
  explicit ClaimDirectory(const std::string& path);

  [[nodiscard]] Decision decide(const TermClaim& claim, TimePoint deadline) override;

  // Steps 3 and 4 of decide(), for tests that stop between them. Both throw Error.
  [[nodiscard]] std::string write_candidate(const TermClaim& claim) const;  // its name in the directory
  [[nodiscard]] bool link_candidate(const std::string& candidate, const std::string& name) const;

  [[nodiscard]] static std::string file_name(const VmId& vm, Term term);

 private:
  [[nodiscard]] std::string path_of(const std::string& name) const { return path_ + "/" + name; }
  [[nodiscard]] Term highest_term(const VmId& vm) const;  // 0: none
  [[nodiscard]] bool exists(const std::string& name) const;
  [[nodiscard]] std::optional<std::string> read(const std::string& name) const;
  [[nodiscard]] Decision decide_by(const TermClaim& claim, const std::string& name, const std::string& text) const;
  [[nodiscard]] Decision passed_by(const TermClaim& claim, Term last) const;
  void remove(const std::string& name) const noexcept;
  void sync() const;
  void try_out() const;

  const std::string path_;
  Fd directory_;
};

}  // namespace pollux::protocol
