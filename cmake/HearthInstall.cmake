# SPDX-License-Identifier: Apache-2.0
# What `make dist` packs (scripts/dist.sh): bin/hearth, and in lib/ every shared library that it needs
# and that is not glibc, libstdc++ included, so that the folder runs on any x86-64 Linux with glibc as
# new as the build machine's. The binary has DT_RPATH, not DT_RUNPATH: only DT_RPATH also serves the
# libraries that our libraries need. cuBLASLt and NCCL are opened at run time and never packed.
option(HEARTH_DIST "Link for the relocatable distribution" OFF)
if(TARGET hearth)
  set_target_properties(hearth PROPERTIES INSTALL_RPATH "$ORIGIN/../lib")
  if(HEARTH_DIST)
    target_link_options(hearth PRIVATE -Wl,--disable-new-dtags)
  endif()
  install(TARGETS hearth RUNTIME_DEPENDENCY_SET hearth_shared RUNTIME DESTINATION bin)
  install(RUNTIME_DEPENDENCY_SET hearth_shared
    PRE_EXCLUDE_REGEXES [[^ld-linux]] [[^lib(c|m|dl|rt|pthread|resolv|util|anl|mvec|nss_.*)\.so]] [[^libcuda\.so]]
    LIBRARY DESTINATION lib)
  install(FILES LICENSE THIRD_PARTY.md README.md DESTINATION . OPTIONAL)
endif()
