# Writes the commit into a header, and touches it only when it changes. Works outside git too, and inside a repository that
# is not this one.
execute_process(
  COMMAND git rev-parse --show-toplevel
  WORKING_DIRECTORY ${SOURCE_DIR}
  OUTPUT_VARIABLE TOPLEVEL
  OUTPUT_STRIP_TRAILING_WHITESPACE
  ERROR_QUIET)
file(REAL_PATH ${SOURCE_DIR} SOURCE_DIR_REAL)
execute_process(
  COMMAND git describe --always --dirty --abbrev=12 --match=NONE
  WORKING_DIRECTORY ${SOURCE_DIR}
  OUTPUT_VARIABLE TRAINYARD_COMMIT
  OUTPUT_STRIP_TRAILING_WHITESPACE
  ERROR_QUIET
  RESULT_VARIABLE failed)
if(failed OR TRAINYARD_COMMIT STREQUAL "" OR NOT TOPLEVEL STREQUAL SOURCE_DIR_REAL)
  set(TRAINYARD_COMMIT "unknown")
endif()
configure_file(${SOURCE_DIR}/cli/version.h.in ${OUTPUT} @ONLY)
