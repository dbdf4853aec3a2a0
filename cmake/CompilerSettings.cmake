# What every target of ours is compiled with. Link `pollux_settings` (base does, publicly).
add_library(pollux_settings INTERFACE)
target_compile_options(pollux_settings INTERFACE -Wall -Wextra -Wconversion -Werror)
target_include_directories(pollux_settings INTERFACE ${CMAKE_SOURCE_DIR} ${CMAKE_BINARY_DIR})
# Debian builds libspdlog with an external fmt.
target_compile_definitions(pollux_settings INTERFACE SPDLOG_FMT_EXTERNAL BOOST_ASIO_NO_DEPRECATED)

set(POLLUX_SANITIZE "" CACHE STRING "Sanitizers to build with, e.g. address,undefined or thread")
if(POLLUX_SANITIZE)
  target_compile_options(pollux_settings INTERFACE -fsanitize=${POLLUX_SANITIZE} -fno-omit-frame-pointer
                                                   -fno-sanitize-recover=all)
  # g++ 12 takes the inactive strings of a moved std::variant for used ones once instrumentation is in between.
  target_compile_options(pollux_settings INTERFACE -Wno-maybe-uninitialized)
  target_link_options(pollux_settings INTERFACE -fsanitize=${POLLUX_SANITIZE})
endif()

find_program(CCACHE ccache)
if(CCACHE)
  # Paths relative to the checkout: what one checkout has compiled, another need not.
  set(CMAKE_CXX_COMPILER_LAUNCHER ${CMAKE_COMMAND} -E env CCACHE_BASEDIR=${CMAKE_SOURCE_DIR} CCACHE_NOHASHDIR=true ${CCACHE})
endif()
