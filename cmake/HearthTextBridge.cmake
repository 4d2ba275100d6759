# SPDX-License-Identifier: Apache-2.0
# hearth_text_bridge: the static library of the Rust crate in text-bridge/.
#   -DHEARTH_TEXT_BRIDGE_LIB=/path/libhearth_text_bridge.a uses one that was built elsewhere, and needs no cargo.
# cargo's own folder is shared by all presets (no sanitizer changes Rust code), and each preset keeps a copy of the
# result, so that one preset's build never touches what another has linked.
set(HEARTH_TEXT_BRIDGE_LIB "" CACHE FILEPATH "A prebuilt libhearth_text_bridge.a; empty: built by cargo")
set(bridge_dir ${PROJECT_SOURCE_DIR}/text-bridge)

add_library(hearth_text_bridge STATIC IMPORTED GLOBAL)
target_include_directories(hearth_text_bridge INTERFACE ${bridge_dir}/include)
target_link_libraries(hearth_text_bridge INTERFACE Threads::Threads ${CMAKE_DL_LIBS} m)

if(HEARTH_TEXT_BRIDGE_LIB)
  if(NOT EXISTS ${HEARTH_TEXT_BRIDGE_LIB})
    message(FATAL_ERROR "HEARTH_TEXT_BRIDGE_LIB: no file ${HEARTH_TEXT_BRIDGE_LIB}")
  endif()
  set_target_properties(hearth_text_bridge PROPERTIES IMPORTED_LOCATION ${HEARTH_TEXT_BRIDGE_LIB})
else()
  execute_process(COMMAND sh ${PROJECT_SOURCE_DIR}/scripts/find_cargo.sh
    OUTPUT_VARIABLE bridge_cargo OUTPUT_STRIP_TRAILING_WHITESPACE RESULT_VARIABLE bridge_status)
  if(NOT bridge_status EQUAL 0)
    execute_process(COMMAND sh ${PROJECT_SOURCE_DIR}/scripts/find_cargo.sh --minimum
      OUTPUT_VARIABLE bridge_minimum OUTPUT_STRIP_TRAILING_WHITESPACE)
    message(FATAL_ERROR "no cargo ${bridge_minimum} or newer on PATH, in ~/.cargo/bin or in /usr/bin. "
      "scripts/install.sh installs one, or give -DHEARTH_TEXT_BRIDGE_LIB=<libhearth_text_bridge.a>")
  endif()
  set(bridge_lib ${CMAKE_BINARY_DIR}/lib/libhearth_text_bridge.a)
  set(bridge_target_dir ${PROJECT_SOURCE_DIR}/build/cargo)
  # Panic messages name crates, not the folders of this machine. Not through RUSTFLAGS, which would split at
  # spaces and hide a user's own; where RUSTFLAGS is set, cargo takes that alone.
  set(bridge_home $ENV{CARGO_HOME})
  if(NOT bridge_home)
    set(bridge_home $ENV{HOME}/.cargo)
  endif()
  set(bridge_remap "\"--remap-path-prefix=${PROJECT_SOURCE_DIR}=.\", \"--remap-path-prefix=${bridge_home}=cargo\"")
  file(GLOB_RECURSE bridge_sources CONFIGURE_DEPENDS ${bridge_dir}/src/*.rs)
  add_custom_command(OUTPUT ${bridge_lib}.stamp BYPRODUCTS ${bridge_lib}
    COMMAND ${CMAKE_COMMAND} -E env CARGO_TARGET_DIR=${bridge_target_dir}
      ${bridge_cargo} --config "build.rustflags=[${bridge_remap}]" build --release --locked --quiet --manifest-path ${bridge_dir}/Cargo.toml
    COMMAND ${CMAKE_COMMAND} -E make_directory ${CMAKE_BINARY_DIR}/lib
    COMMAND ${CMAKE_COMMAND} -E copy_if_different ${bridge_target_dir}/release/libhearth_text_bridge.a ${bridge_lib}
    COMMAND ${CMAKE_COMMAND} -E touch ${bridge_lib}.stamp
    DEPENDS ${bridge_sources} ${bridge_dir}/Cargo.toml ${bridge_dir}/Cargo.lock
    COMMENT "Building text-bridge with ${bridge_cargo}" VERBATIM)
  add_custom_target(hearth_text_bridge_build DEPENDS ${bridge_lib}.stamp)
  add_dependencies(hearth_text_bridge hearth_text_bridge_build)
  set_target_properties(hearth_text_bridge PROPERTIES IMPORTED_LOCATION ${bridge_lib})
endif()
