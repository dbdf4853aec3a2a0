// A disk image whose file stays as it is: what the guest writes is kept in memory, and gone with this object.
#pragma once

#include <memory>
#include <mutex>
#include <unordered_map>

#include "vmm/block/image.h"

namespace pollux::vmm {

// Nobody else may write the file meanwhile; no lock keeps them from it.
class PrivateImage final : public Image {
 public:
  explicit PrivateImage(const std::string& path) : Image(path, true) {}

  [[nodiscard]] bool read(std::uint64_t offset, MutableByteView into) override;
  [[nodiscard]] bool write(std::uint64_t offset, ByteView from) override;
  [[nodiscard]] bool discard(std::uint64_t offset, std::uint64_t length) override;
  [[nodiscard]] bool sync() override { return true; }

 private:
  static constexpr std::uint64_t kBlockBytes = 4096;
  [[nodiscard]] Bytes* changed_block(std::uint64_t index);

  std::mutex mutex_;
  std::unordered_map<std::uint64_t, Bytes> blocks_;  // guarded by mutex_: whole blocks, by their index
};

}  // namespace pollux::vmm
