#include "protocol/types.h"

#include <fmt/format.h>
#include <unistd.h>

#include <span>

#include "base/error.h"

namespace pollux::protocol {
namespace {

std::string hex(std::span<const std::byte> bytes) {
  std::string text;
  for (const std::byte byte : bytes) text += fmt::format("{:02x}", std::to_integer<unsigned>(byte));
  return text;
}

}  // namespace

std::string to_string(EpochId epoch) { return std::to_string(epoch.value); }
std::string to_string(Term term) { return std::to_string(term.value); }
std::string to_string(PageNumber page) { return fmt::format("{:#x}", page.value); }
std::string to_string(DiskId disk) { return std::to_string(disk.value); }
std::string to_string(BackupId backup) { return std::to_string(backup.value); }

std::string to_string(const VmId& vm) { return hex(vm.value); }
std::string to_string(const ReplicaId& replica) { return hex(replica.value); }

ReplicaId ReplicaId::random() {
  ReplicaId id;
  if (::getentropy(id.value.data(), id.value.size()) != 0) throw errno_error("cannot get", "random bytes");
  return id;
}

}  // namespace pollux::protocol
