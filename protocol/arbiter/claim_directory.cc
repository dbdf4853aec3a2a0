#include "protocol/arbiter/claim_directory.h"

#include <dirent.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstring>
#include <memory>

#include "base/error.h"

namespace pollux::protocol {
namespace {

constexpr std::size_t kTermDigits = 20;

struct CloseDir {
  void operator()(DIR* stream) const { ::closedir(stream); }
};
using DirStream = std::unique_ptr<DIR, CloseDir>;

// Removes a candidate when the claim is over, either way.
template <typename Remove>
class OnExit {
 public:
  explicit OnExit(Remove remove) : remove_(std::move(remove)) {}
  OnExit(const OnExit&) = delete;
  OnExit& operator=(const OnExit&) = delete;
  ~OnExit() { remove_(); }

 private:
  Remove remove_;
};

void write_all(const Fd& fd, const std::string& text, const std::string& path) {
  const ssize_t written = ::write(fd.get(), text.data(), text.size());
  if (written < 0) throw errno_error("cannot write", path);
  if (static_cast<std::size_t>(written) != text.size()) throw errno_error("cannot write", path, ENOSPC);
}

// Nothing: it is damaged.
std::optional<ClaimRecord> record_in(std::string_view text) {
  if (!text.ends_with('\n')) return std::nullopt;
  return parse_record(text.substr(0, text.size() - 1));
}

// The term of "<prefix><20 digits>"; 0 for any other name.
Term parse_term(std::string_view name, std::string_view prefix) {
  if (name.size() != prefix.size() + kTermDigits || !name.starts_with(prefix)) return {};
  Term term;
  const char* end = name.data() + name.size();
  const auto result = std::from_chars(name.data() + prefix.size(), end, term.value);
  return result.ec == std::errc{} && result.ptr == end ? term : Term{};
}

}  // namespace

ClaimDirectory::ClaimDirectory(const std::string& path) : path_(path) {
  directory_ = Fd(::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!directory_) throw UsageError(errno_error("cannot open arbiter directory", path).what());
  try {
    try_out();
  } catch (const Error& error) {
    throw UsageError(fmt::format("{} cannot hold claims: {}", path, error.what()));
  }
}

Decision ClaimDirectory::decide(const TermClaim& claim, TimePoint) {
  const Term highest = highest_term(claim.vm);
  if (highest > claim.term) return passed_by(claim, highest);
  const std::string name = file_name(claim.vm, claim.term);
  if (const auto text = read(name)) return decide_by(claim, name, *text);
  if (claim.term.value > 1 && !exists(file_name(claim.vm, {claim.term.value - 1}))) return lost_to_gap(claim);

  const std::string candidate = write_candidate(claim);
  const OnExit cleanup([&] { remove(candidate); });
  if (link_candidate(candidate, name)) {
    sync();
    return Decision::won();
  }
  const auto text = read(name);
  if (!text) return Decision::unreachable(path_of(name) + " exists and cannot be found");
  return decide_by(claim, name, *text);
}

std::string ClaimDirectory::write_candidate(const TermClaim& claim) const {
  std::string name = ".candidate." + to_string(ReplicaId::random());  // unique; whose it is, says the content
  const std::string path = path_of(name);
  Fd file(::openat(directory_.get(), name.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644));
  if (!file) throw errno_error("cannot create", path);
  try {
    write_all(file, record_of(claim) + "\n", path);
    if (::fsync(file.get()) != 0) throw errno_error("cannot sync", path);
    // Errors of delayed writes come with the close on network file systems.
    if (::close(file.release()) != 0) throw errno_error("cannot close", path);
  } catch (const Error&) {
    remove(name);
    throw;
  }
  return name;
}

bool ClaimDirectory::link_candidate(const std::string& candidate, const std::string& name) const {
  if (::linkat(directory_.get(), candidate.c_str(), directory_.get(), name.c_str(), 0) == 0) return true;
  const int error = errno;
  struct stat status {};
  if (::fstatat(directory_.get(), candidate.c_str(), &status, AT_SYMLINK_NOFOLLOW) == 0 &&
      status.st_nlink == 2) {
    return true;  // it was made, its answer was lost
  }
  if (error == EEXIST) return false;
  throw errno_error("cannot link", path_of(name), error);
}

std::string ClaimDirectory::file_name(const VmId& vm, Term term) {
  return to_string(vm) + "." + term_digits(term);
}

Term ClaimDirectory::highest_term(const VmId& vm) const {
  // Opened afresh: that is when an NFS client asks the server whether what it has cached is still true.
  Fd fresh(::openat(directory_.get(), ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!fresh) throw errno_error("cannot open", path_);
  struct stat status {};
  if (::fstat(fresh.get(), &status) != 0) throw errno_error("cannot stat", path_);
  if (status.st_nlink == 0) throw Error(path_ + " has been removed");
  const DirStream stream(::fdopendir(fresh.get()));
  if (!stream) throw errno_error("cannot read", path_);
  static_cast<void>(fresh.release());  // the stream's now

  const std::string prefix = to_string(vm) + ".";
  Term highest;
  for (;;) {
    errno = 0;
    const dirent* entry = ::readdir(stream.get());
    if (entry == nullptr) break;
    highest = std::max(highest, parse_term(entry->d_name, prefix));
  }
  if (errno != 0) throw errno_error("cannot read", path_);
  return highest;
}

bool ClaimDirectory::exists(const std::string& name) const {
  struct stat status {};
  if (::fstatat(directory_.get(), name.c_str(), &status, AT_SYMLINK_NOFOLLOW) == 0) return true;
  if (errno != ENOENT) throw errno_error("cannot stat", path_of(name));
  return false;
}

// What a claim file holds; nothing when there is no such file.
std::optional<std::string> ClaimDirectory::read(const std::string& name) const {
  const Fd file(::openat(directory_.get(), name.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW));
  if (!file && errno == ENOENT) return std::nullopt;
  if (!file) throw errno_error("cannot open", path_of(name));
  std::string text(kMaxRecordBytes + 1, '\0');
  const ssize_t length = ::read(file.get(), text.data(), text.size());
  if (length < 0) throw errno_error("cannot read", path_of(name));
  text.resize(static_cast<std::size_t>(length));
  return text;
}

// By the file of its own term. Throws Error when that names no replica: only whoever damaged it knows what it was, and so
// nobody may win it.
Decision ClaimDirectory::decide_by(const TermClaim& claim, const std::string& name, const std::string& text) const {
  const auto record = record_in(text);
  if (!record) throw Error(path_of(name) + " is damaged: it names no replica");
  Decision decision = judge(claim, claim.term, *record);
  if (decision.verdict == Verdict::kWon) sync();  // whoever made the file may not have come so far
  return decision;
}

// The machine is in a later term. A damaged file of that one names nobody as a member.
Decision ClaimDirectory::passed_by(const TermClaim& claim, Term last) const {
  const auto text = read(file_name(claim.vm, last));
  const auto record = text ? record_in(*text) : std::nullopt;
  return record ? judge(claim, last, *record) : lost_to_higher_term(last);
}

void ClaimDirectory::remove(const std::string& name) const noexcept {
  ::unlinkat(directory_.get(), name.c_str(), 0);  // left behind it does no harm
}

void ClaimDirectory::sync() const {
  if (::fsync(directory_.get()) != 0) throw errno_error("cannot sync", path_);
}

// A claim's steps under another name: finds out early that there are no hard links, no directory fsync, no
// permission.
void ClaimDirectory::try_out() const {
  const std::string candidate = write_candidate({});
  const OnExit cleanup([&] { remove(candidate); });
  const std::string name = candidate + ".link";
  const bool linked = link_candidate(candidate, name);
  const OnExit cleanup_link([&] { remove(name); });
  POLLUX_ASSERT(linked);
  sync();
}

}  // namespace pollux::protocol
