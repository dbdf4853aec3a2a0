# Everything comes from Debian packages (see `./run setup`); the build downloads nothing.
find_package(Threads REQUIRED)
find_package(PkgConfig REQUIRED)
# 1.81, not Debian's default 1.74: the first whose Asio coroutines compile cleanly as C++20 with g++ 12.
find_package(Boost 1.81 REQUIRED COMPONENTS json)
find_package(CapnProto CONFIG REQUIRED)
find_package(spdlog CONFIG REQUIRED)
find_package(CLI11 CONFIG REQUIRED)
find_package(tomlplusplus CONFIG REQUIRED)
find_package(OpenSSL REQUIRED)
pkg_check_modules(sodium REQUIRED IMPORTED_TARGET libsodium)
pkg_check_modules(xxhash REQUIRED IMPORTED_TARGET libxxhash)
# With the functions that use what the processor has: hashing pages with AVX2 takes half the time.
include(CheckLibraryExists)
check_library_exists(xxhash XXH3_128bits_dispatch "${xxhash_LIBRARY_DIRS}" XXHASH_DISPATCHES)
if(NOT XXHASH_DISPATCHES)
  message(FATAL_ERROR "libxxhash has no XXH3_128bits_dispatch: it must be built with DISPATCH=1, as Debian's is")
endif()
