# pollux_schema(TARGET file.capnp...): a static library of generated Cap'n Proto code, included as
# "<folder>/<file>.capnp.h" from the repository's root. Generated code is held to no warnings of ours.
function(pollux_schema target)
  set(CAPNPC_SRC_PREFIX ${CMAKE_SOURCE_DIR})
  set(CAPNPC_OUTPUT_DIR ${CMAKE_BINARY_DIR})
  capnp_generate_cpp(sources headers ${ARGN})
  add_library(${target} STATIC ${sources})
  target_include_directories(${target} SYSTEM PUBLIC ${CMAKE_BINARY_DIR})
  target_link_libraries(${target} PUBLIC CapnProto::capnp)
  if(POLLUX_SANITIZE)
    target_compile_options(${target} PRIVATE -fsanitize=${POLLUX_SANITIZE})
  endif()
endfunction()
