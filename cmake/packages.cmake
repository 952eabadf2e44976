# Debian packages by CPack, for `./run package` (scripts/package.sh): pmkvq, libpmkvq-dev and, where
# the plugin is built, pmkvq-mpi. PMKVQ_DEBIAN_LAYOUT puts documents where Debian's policy wants them.
if(NOT PMKVQ_DEBIAN_LAYOUT)
  return()
endif()
set(PMKVQ_PACKAGE_RELEASE "1" CACHE STRING "Debian revision: 1~deb12")
set(PMKVQ_MAINTAINER "pmkvq maintainers <maintainers@pmkvq.invalid>"
  CACHE STRING "Maintainer field of the packages")

# Installs copyright, changelogs and notices of a package as its component.
function(pmkvq_install_documents package component)
  set(folder ${CMAKE_INSTALL_DATADIR}/doc/${package})
  install(FILES packaging/copyright ${PROJECT_BINARY_DIR}/documents/changelog.gz
    ${PROJECT_BINARY_DIR}/documents/changelog.Debian.gz DESTINATION ${folder}
    COMPONENT ${component})
  if(EXISTS ${PROJECT_SOURCE_DIR}/packaging/${package}.lintian-overrides)
    install(FILES packaging/${package}.lintian-overrides
      DESTINATION ${CMAKE_INSTALL_DATADIR}/lintian/overrides RENAME ${package}
      COMPONENT ${component})
  endif()
endfunction()
find_program(PMKVQ_GZIP gzip REQUIRED)
add_custom_command(OUTPUT ${PROJECT_BINARY_DIR}/documents.stamp
  COMMAND ${CMAKE_COMMAND} -DSOURCE=${PROJECT_SOURCE_DIR} -DFOLDER=${PROJECT_BINARY_DIR}/documents
    -DVERSION=${PROJECT_VERSION}-${PMKVQ_PACKAGE_RELEASE} "-DMAINTAINER=${PMKVQ_MAINTAINER}"
    -P ${PROJECT_SOURCE_DIR}/cmake/changelogs.cmake
  COMMAND ${CMAKE_COMMAND} -DFOLDER=${PROJECT_BINARY_DIR}/documents -DGZIP=${PMKVQ_GZIP}
    -P ${PROJECT_SOURCE_DIR}/cmake/compress.cmake
  COMMAND ${CMAKE_COMMAND} -E touch ${PROJECT_BINARY_DIR}/documents.stamp
  DEPENDS ${PROJECT_SOURCE_DIR}/CHANGELOG.md ${PROJECT_SOURCE_DIR}/cmake/changelogs.cmake VERBATIM)
add_custom_target(pmkvq_documents ALL DEPENDS ${PROJECT_BINARY_DIR}/documents.stamp)
# What the program is made of; needs the program.
add_custom_command(OUTPUT ${PROJECT_BINARY_DIR}/pmkvq.spdx.json
  COMMAND ${CMAKE_COMMAND} -DPROGRAM=$<TARGET_FILE:pmkvq> -DSOURCE=${PROJECT_SOURCE_DIR}
    -DVERSION=${PROJECT_VERSION} -DOUTPUT=${PROJECT_BINARY_DIR}/pmkvq.spdx.json
    -P ${PROJECT_SOURCE_DIR}/cmake/sbom.cmake
  DEPENDS pmkvq ${PROJECT_SOURCE_DIR}/cmake/sbom.cmake VERBATIM)
add_custom_target(pmkvq_sbom ALL DEPENDS ${PROJECT_BINARY_DIR}/pmkvq.spdx.json)
install(FILES ${PROJECT_BINARY_DIR}/pmkvq.spdx.json
  DESTINATION ${CMAKE_INSTALL_DATADIR}/doc/pmkvq COMPONENT program)

pmkvq_install_documents(pmkvq program)
pmkvq_install_documents(libpmkvq-dev product)

set(CPACK_GENERATOR DEB)
set(CPACK_PACKAGE_NAME pmkvq)
set(CPACK_PACKAGE_VERSION ${PROJECT_VERSION})
set(CPACK_PACKAGE_CONTACT "${PMKVQ_MAINTAINER}")
set(CPACK_PACKAGING_INSTALL_PREFIX /usr)
set(CPACK_STRIP_FILES ON)
set(CPACK_INSTALL_DEFAULT_DIRECTORY_PERMISSIONS
  OWNER_READ OWNER_WRITE OWNER_EXECUTE GROUP_READ GROUP_EXECUTE WORLD_READ WORLD_EXECUTE)
set(CPACK_DEB_COMPONENT_INSTALL ON)
set(CPACK_COMPONENTS_GROUPING ONE_PER_GROUP)
set(CPACK_COMPONENTS_ALL program product research)
set(CPACK_COMPONENT_PRODUCT_GROUP dev)
set(CPACK_COMPONENT_RESEARCH_GROUP dev)
set(CPACK_DEBIAN_FILE_NAME DEB-DEFAULT)
set(CPACK_DEBIAN_PACKAGE_RELEASE ${PMKVQ_PACKAGE_RELEASE})
set(CPACK_DEBIAN_PACKAGE_PRIORITY optional)
set(CPACK_DEBIAN_PACKAGE_SHLIBDEPS ON)
set(CPACK_DEBIAN_COMPRESSION_TYPE xz)
set(CPACK_DEBIAN_PACKAGE_CONTROL_STRICT_PERMISSION ON)

set(CPACK_DEBIAN_PROGRAM_PACKAGE_NAME pmkvq)
set(CPACK_DEBIAN_PROGRAM_PACKAGE_SECTION science)
set(CPACK_DEBIAN_PROGRAM_PACKAGE_SUGGESTS "bash-completion, python3, pmkvq-mpi")
set(CPACK_COMPONENT_PROGRAM_DESCRIPTION
"long-reasoning language models inside a fixed KV-cache budget
Generates text with language models that write tens of thousands of tokens
before they answer. The cache of keys and values stays at 16 bits while
memory lasts, and its width is halved step by step when the budget is
reached (PM-KVQ).
The package holds the program: generation, chat, a server with OpenAI's API,
calibration, evaluation and comparison of cache methods. It holds no model.")

set(CPACK_DEBIAN_DEV_PACKAGE_NAME libpmkvq-dev)
set(CPACK_DEBIAN_DEV_PACKAGE_SECTION libdevel)
math(EXPR PMKVQ_NEXT_FMT "${fmt_VERSION_MAJOR} + 1")
# The static libraries are compiled against these headers and link these libraries.
set(CPACK_DEBIAN_DEV_PACKAGE_DEPENDS "libhwy-dev, libopenblas-dev, libpcre2-dev, libutf8proc-dev, libxxhash-dev, libfmt-dev (>= ${fmt_VERSION_MAJOR}~), libfmt-dev (<< ${PMKVQ_NEXT_FMT}~), libgmp-dev, libmpfr-dev, libmpc-dev, pkgconf | pkg-config")
set(CPACK_COMPONENT_DEV_DESCRIPTION
"development files of pmkvq
Static libraries, headers, a pkg-config file and a CMake package for
programs that generate text inside a fixed KV-cache budget, and for those
that calibrate, evaluate and compare cache methods.")

# libpmkvq_mpi.so, which the program loads under mpirun.
if(TARGET pmkvq_mpi)
  list(APPEND CPACK_COMPONENTS_ALL mpi)
  pmkvq_install_documents(pmkvq-mpi mpi)
  set(CPACK_DEBIAN_MPI_PACKAGE_NAME pmkvq-mpi)
  set(CPACK_DEBIAN_MPI_PACKAGE_SECTION science)
  set(CPACK_DEBIAN_MPI_PACKAGE_DEPENDS "pmkvq (= ${PROJECT_VERSION}-${PMKVQ_PACKAGE_RELEASE})")
  set(CPACK_COMPONENT_MPI_DESCRIPTION
"pmkvq on several machines by MPI
The plugin that pmkvq loads when mpirun or srun starts it: one model over
several processes, and evaluation spread over them.")
endif()
include(CPack)
