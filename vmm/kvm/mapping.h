// A shared mapping of a KVM file descriptor.
#pragma once

#include <sys/mman.h>

#include <utility>

#include "base/bytes.h"
#include "vmm/kvm/system.h"

namespace pollux::vmm::kvm {

class Mapping {
 public:
  Mapping() = default;
  Mapping(const Fd& fd, std::size_t bytes, std::size_t offset, const char* what) : bytes_(bytes) {
    void* address =
        ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd.get(), static_cast<::off_t>(offset));
    if (address == MAP_FAILED) throw KvmError(errno_error("map", what).what());
    address_ = address;
  }
  Mapping(Mapping&& other) noexcept
      : address_(std::exchange(other.address_, nullptr)), bytes_(std::exchange(other.bytes_, 0)) {}
  Mapping& operator=(Mapping&& other) noexcept {
    std::swap(address_, other.address_);
    std::swap(bytes_, other.bytes_);
    return *this;
  }
  ~Mapping() {
    if (address_ != nullptr) ::munmap(address_, bytes_);
  }

  template <class T>
  [[nodiscard]] T* as() const {
    return static_cast<T*>(address_);
  }
  [[nodiscard]] std::byte* bytes() const { return static_cast<std::byte*>(address_); }
  [[nodiscard]] std::size_t size() const { return bytes_; }

 private:
  void* address_ = nullptr;
  std::size_t bytes_ = 0;
};

}  // namespace pollux::vmm::kvm
