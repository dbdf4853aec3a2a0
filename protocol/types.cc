#include "protocol/types.h"

#include <fmt/format.h>

namespace pollux::protocol {

std::string to_string(EpochId epoch) { return std::to_string(epoch.value); }
std::string to_string(Term term) { return std::to_string(term.value); }
std::string to_string(PageNumber page) { return fmt::format("{:#x}", page.value); }
std::string to_string(DiskId disk) { return std::to_string(disk.value); }
std::string to_string(BackupId backup) { return std::to_string(backup.value); }

std::string to_string(const VmId& vm) {
  std::string text;
  for (const std::byte byte : vm.value) text += fmt::format("{:02x}", std::to_integer<unsigned>(byte));
  return text;
}

}  // namespace pollux::protocol
