# Puts text files into a library, so that the program needs none of them when it runs.
#
#   pmkvq_embed_text(<target> <name> <file>)
#
# defines `extern const std::string_view pmkvq::embedded::<name>` with the file's content; the
# header that declares it is written by hand. A changed file is taken over by the next build.
function(pmkvq_embed_text target name file)
  set(source ${PROJECT_BINARY_DIR}/embedded/${name}.cc)
  set_property(DIRECTORY ${PROJECT_SOURCE_DIR} APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS ${file})
  file(READ ${file} PMKVQ_EMBEDDED_TEXT)
  string(FIND "${PMKVQ_EMBEDDED_TEXT}" ")pmkvq_embedded\"" delimiter)
  if(NOT delimiter EQUAL -1)
    message(FATAL_ERROR "${file} holds the delimiter of its own string literal")
  endif()
  set(PMKVQ_EMBEDDED_NAME ${name})
  configure_file(${PROJECT_SOURCE_DIR}/cmake/embedded_text.cc.in ${source} @ONLY)
  target_sources(${target} PRIVATE ${source})
endfunction()
