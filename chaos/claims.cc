#include "chaos/claims.h"

#include "base/error.h"

namespace pollux::chaos {

std::size_t count_claims(const std::filesystem::path& directory) {
  std::error_code error;
  std::size_t count = 0;
  for (std::filesystem::directory_iterator entry(directory, error), end; !error && entry != end;
       entry.increment(error)) {
    // A hidden file is a candidate, of whoever asks at this moment: it decides nothing.
    if (!entry->path().filename().string().starts_with('.')) ++count;
  }
  if (error) throw Error("look at the claims in " + directory.string() + ": " + error.message());
  return count;
}

}  // namespace pollux::chaos
