# cmake -DFOLDER=DIR -DGZIP=PROGRAM -P compress.cmake
#
# Compresses every file of the folder; without names and times, so that equal files stay equal.
file(GLOB files ${FOLDER}/*)
list(SORT files)
foreach(file IN LISTS files)
  execute_process(COMMAND ${GZIP} -9n ${file} COMMAND_ERROR_IS_FATAL ANY)
endforeach()
