# What the built program writes about itself, and where it is installed: manual pages, one a command,
# and completion for three shells. Left out where the program does not run on this machine (cross
# builds without CMAKE_CROSSCOMPILING_EMULATOR).
set(PMKVQ_BASH_COMPLETIONS_DIR ${CMAKE_INSTALL_DATADIR}/bash-completion/completions
  CACHE STRING "Folder of bash's completions, below the prefix")
set(PMKVQ_ZSH_COMPLETIONS_DIR ${CMAKE_INSTALL_DATADIR}/zsh/site-functions
  CACHE STRING "Folder of zsh's completions; Debian's is share/zsh/vendor-completions")
set(PMKVQ_FISH_COMPLETIONS_DIR ${CMAKE_INSTALL_DATADIR}/fish/vendor_completions.d
  CACHE STRING "Folder of fish's completions")

if(CMAKE_CROSSCOMPILING AND NOT CMAKE_CROSSCOMPILING_EMULATOR)
  message(STATUS "Manual pages and completion are left out: CMAKE_CROSSCOMPILING_EMULATOR is not set")
  return()
endif()
find_program(PMKVQ_GZIP gzip)
set(pages ${PROJECT_BINARY_DIR}/man1)
set(scripts ${PROJECT_BINARY_DIR}/completion)
set(compress "")
if(PMKVQ_GZIP)
  set(compress COMMAND ${CMAKE_COMMAND} -DFOLDER=${pages} -DGZIP=${PMKVQ_GZIP}
    -P ${PROJECT_SOURCE_DIR}/cmake/compress.cmake)
endif()
set(completions "")
foreach(shell bash zsh fish)
  list(APPEND completions COMMAND pmkvq completion ${shell} > ${scripts}/pmkvq.${shell})
endforeach()
# A page of a command that is gone must not stay.
add_custom_command(OUTPUT ${PROJECT_BINARY_DIR}/program_files.stamp
  COMMAND ${CMAKE_COMMAND} -E rm -rf ${pages} ${scripts}
  COMMAND ${CMAKE_COMMAND} -E make_directory ${scripts}
  COMMAND pmkvq man --out ${pages}
  ${compress}
  ${completions}
  COMMAND ${CMAKE_COMMAND} -E touch ${PROJECT_BINARY_DIR}/program_files.stamp
  DEPENDS pmkvq COMMENT "Manual pages and completion" VERBATIM)
add_custom_target(pmkvq_program_files ALL DEPENDS ${PROJECT_BINARY_DIR}/program_files.stamp)

install(DIRECTORY ${pages} DESTINATION ${CMAKE_INSTALL_MANDIR} COMPONENT program)
install(FILES ${scripts}/pmkvq.bash DESTINATION ${PMKVQ_BASH_COMPLETIONS_DIR} RENAME pmkvq
  COMPONENT program)
install(FILES ${scripts}/pmkvq.zsh DESTINATION ${PMKVQ_ZSH_COMPLETIONS_DIR} RENAME _pmkvq
  COMPONENT program)
install(FILES ${scripts}/pmkvq.fish DESTINATION ${PMKVQ_FISH_COMPLETIONS_DIR} COMPONENT program)
