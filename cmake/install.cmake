# cmake --install: two libraries, or with BUILD_SHARED_LIBS the first one as libpmkvq.so. pmkvq::pmkvq generates text; its headers are those that
# public_headers.txt lists. pmkvq::research measures (find_package(pmkvq COMPONENTS research)). Also
# the program, a pkg-config file for pmkvq::pmkvq, and the licences.
#   cmake --install BUILD --component product    only what generates text
include(CMakePackageConfigHelpers)

function(pmkvq_install_library name export)
  add_library(pmkvq_${name}_package INTERFACE)
  set_target_properties(pmkvq_${name}_package PROPERTIES EXPORT_NAME ${name})
  target_compile_features(pmkvq_${name}_package INTERFACE cxx_std_20)
  cmake_parse_arguments(ARG "" "COMPONENT" "LINK;MODULES" ${ARGN})
  target_link_libraries(pmkvq_${name}_package INTERFACE ${ARG_LINK})
  # The same name in a project that has this one as a part.
  add_library(pmkvq::${name} ALIAS pmkvq_${name}_package)
  if(NOT PMKVQ_INSTALL)
    return()
  endif()
  install(TARGETS ${ARG_MODULES} pmkvq_${name}_package EXPORT ${export}
    ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR}/pmkvq COMPONENT ${ARG_COMPONENT}
    LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR} COMPONENT ${ARG_COMPONENT})
  install(EXPORT ${export} NAMESPACE pmkvq:: COMPONENT ${ARG_COMPONENT}
    DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/pmkvq)
endfunction()

set(product_modules ${PMKVQ_MODULES})
list(FILTER product_modules EXCLUDE REGEX "^research:")
set(research_modules ${PMKVQ_MODULES})
list(FILTER research_modules INCLUDE REGEX "^research:")
list(TRANSFORM research_modules REPLACE "^research:" "")

if(BUILD_SHARED_LIBS)
  include(cmake/shared_library.cmake)
  pmkvq_install_library(pmkvq pmkvq-targets COMPONENT product
    LINK pmkvq_shared MODULES pmkvq_shared)
else()
  pmkvq_install_library(pmkvq pmkvq-targets COMPONENT product
    LINK pmkvq_engine MODULES ${product_modules})
  pmkvq_install_library(research pmkvq-research-targets COMPONENT research
    LINK pmkvq_pmkvq_package pmkvq_compare pmkvq_analysis MODULES ${research_modules})
endif()

if(NOT PMKVQ_INSTALL)
  return()
endif()

# A header that is added to the list is installed by the next build.
set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS
  ${PROJECT_SOURCE_DIR}/cmake/public_headers.txt)
file(STRINGS cmake/public_headers.txt public_headers REGEX "^pmkvq/")
foreach(header IN LISTS public_headers)
  get_filename_component(folder ${header} DIRECTORY)
  install(FILES src/${header} DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}/${folder} COMPONENT product)
endforeach()
if(NOT BUILD_SHARED_LIBS)
  # Headers of research/ include more of the product's than the list has.
  install(DIRECTORY src/pmkvq DESTINATION ${CMAKE_INSTALL_INCLUDEDIR} COMPONENT research
    FILES_MATCHING PATTERN "*.h" PATTERN "*-inl.h" EXCLUDE PATTERN "*_impl.h" EXCLUDE
    PATTERN "detail.h" EXCLUDE)
endif()

configure_package_config_file(cmake/pmkvq-config.cmake.in
  ${PROJECT_BINARY_DIR}/pmkvq-config.cmake
  INSTALL_DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/pmkvq)
write_basic_package_version_file(${PROJECT_BINARY_DIR}/pmkvq-config-version.cmake
  COMPATIBILITY SameMinorVersion)
install(FILES ${PROJECT_BINARY_DIR}/pmkvq-config.cmake ${PROJECT_BINARY_DIR}/pmkvq-config-version.cmake
  DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/pmkvq COMPONENT product)

set(PMKVQ_PC_LIBDIR "\${pcfiledir}/../pmkvq")
set(PMKVQ_PC_REQUIRES Requires)
set(PMKVQ_PC_LIBS "")
if(BUILD_SHARED_LIBS)
  set(PMKVQ_PC_LIBDIR "\${pcfiledir}/..")
  set(PMKVQ_PC_REQUIRES Requires.private)
  set(PMKVQ_PC_LIBS "-lpmkvq ")
else()
  # Static libraries: users of a module before the module.
  foreach(module IN LISTS product_modules)
    string(PREPEND PMKVQ_PC_LIBS "-l${module} ")
  endforeach()
endif()
set(PMKVQ_PC_CUDA "")
if(PMKVQ_HAS_CUDA AND NOT BUILD_SHARED_LIBS)
  set(PMKVQ_PC_CUDA " -L${CUDAToolkit_LIBRARY_DIR} -lcudart_static -ldl -lrt ${PMKVQ_CUBLASLT}")
  install(FILES cmake/cublas.cmake DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/pmkvq
    COMPONENT product)
endif()
# Relative to the file's folder: --prefix is known at the installation only.
file(RELATIVE_PATH PMKVQ_PC_INCLUDE /${CMAKE_INSTALL_LIBDIR}/pkgconfig
  /${CMAKE_INSTALL_INCLUDEDIR})
configure_file(cmake/pmkvq.pc.in ${PROJECT_BINARY_DIR}/pmkvq.pc @ONLY)
install(FILES ${PROJECT_BINARY_DIR}/pmkvq.pc DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig
  COMPONENT product)
if(NOT PMKVQ_DEBIAN_LAYOUT)  # Debian packages have a file named copyright.
  install(FILES LICENSE DESTINATION ${CMAKE_INSTALL_DOCDIR} COMPONENT product)
  install(FILES third_party/chart.js/LICENSE.md DESTINATION ${CMAKE_INSTALL_DOCDIR}
    RENAME LICENSE.chart.js.md COMPONENT research)
endif()
if(PMKVQ_BUILD_PROGRAM)
  include(cmake/program_files.cmake)
  include(cmake/packages.cmake)
endif()
