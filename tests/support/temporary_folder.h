// A folder of its own for each test, gone afterwards.
#pragma once

#include <stdlib.h>

#include <filesystem>
#include <fstream>
#include <string>

#include "base/bytes.h"
#include "base/error.h"

namespace pollux::testing {

class TemporaryFolder {
 public:
  TemporaryFolder() {
    std::string path = (std::filesystem::temp_directory_path() / "pollux-test-XXXXXX").string();
    if (::mkdtemp(path.data()) == nullptr) throw errno_error("make", path);
    path_ = path;
  }
  ~TemporaryFolder() { std::filesystem::remove_all(path_); }
  TemporaryFolder(const TemporaryFolder&) = delete;
  TemporaryFolder& operator=(const TemporaryFolder&) = delete;

  [[nodiscard]] std::string path_of(const std::string& name) const { return (path_ / name).string(); }
  // A file of zeros, all of it a hole. Returns its path.
  [[nodiscard]] std::string make_file(const std::string& name, std::uint64_t bytes) const {
    const std::filesystem::path path = path_ / name;
    std::ofstream(path, std::ios::binary).flush();
    std::filesystem::resize_file(path, bytes);
    return path.string();
  }

 private:
  std::filesystem::path path_;
};

// The whole file as it is now.
[[nodiscard]] inline Bytes contents_of(const std::string& path) {
  Bytes bytes(std::filesystem::file_size(path));
  std::ifstream file(path, std::ios::binary);
  file.read(reinterpret_cast<char*>(bytes.data()), static_cast<std::streamsize>(bytes.size()));
  POLLUX_ASSERT(file.good());
  return bytes;
}

}  // namespace pollux::testing
