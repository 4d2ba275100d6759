# SPDX-License-Identifier: Apache-2.0
# cmake -DSOURCE_DIR= -DOUTPUT= -DVERSION= -DCOMPILER= -DBUILD= -P version.cmake
# Writes version.cpp with the commit of SOURCE_DIR. Runs at every build, because a commit changes no file
# that a build sees; configure_file leaves an equal output alone, so nothing is compiled for it.
set(COMMIT unknown)
find_program(GIT git)
if(GIT AND EXISTS ${SOURCE_DIR}/.git)
  execute_process(COMMAND ${GIT} -C ${SOURCE_DIR} describe --always --dirty --exclude=* --abbrev=12
    OUTPUT_VARIABLE described OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET RESULT_VARIABLE failed)
  if(NOT failed)
    set(COMMIT ${described})
  endif()
endif()
configure_file(${SOURCE_DIR}/hearth/base/version.cpp.in ${OUTPUT} @ONLY)
