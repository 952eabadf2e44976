# cmake -DSOURCE=DIR -DOUTPUT=FILE.cc -P commit.cmake
#
# Writes the commit of the repository whose root is SOURCE, with "+" where files differ from it;
# nothing where SOURCE is no such root (a release archive) or git is missing. The file is left alone
# while its content stays the same.
set(commit "")
find_program(git git)
if(git)
  execute_process(COMMAND ${git} -C ${SOURCE} rev-parse --show-toplevel
    OUTPUT_VARIABLE root OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET RESULT_VARIABLE failed)
  file(REAL_PATH ${SOURCE} source)
  if(NOT failed AND root STREQUAL source)
    execute_process(COMMAND ${git} -C ${SOURCE} rev-parse --short=10 HEAD
      OUTPUT_VARIABLE commit OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
    execute_process(COMMAND ${git} -C ${SOURCE} status --porcelain --untracked-files=no
      OUTPUT_VARIABLE changes ERROR_QUIET)
    if(commit AND changes)
      string(APPEND commit "+")
    endif()
  endif()
endif()
file(CONFIGURE OUTPUT ${OUTPUT} CONTENT
  "namespace pmkvq::cli {\nextern const char* const kCommit;\nconst char* const kCommit = \"${commit}\";\n}  // namespace pmkvq::cli\n" @ONLY)
