# libpmkvq_mpi.so, the plugin through which ranks of mpirun exchange (src/pmkvq/comm/plugin_abi.h).
#   PMKVQ_MPI=AUTO (built where an MPI is found), ON (an error without one) or OFF.
set(PMKVQ_MPI AUTO CACHE STRING "Build the MPI plugin: AUTO, ON or OFF")
set_property(CACHE PMKVQ_MPI PROPERTY STRINGS AUTO ON OFF)

set(PMKVQ_HAS_MPI OFF)
if(NOT PMKVQ_MPI STREQUAL "OFF")
  # Open MPI's names, then MPICH's.
  pkg_search_module(MPI IMPORTED_TARGET ompi-c mpich mpi)
  if(MPI_FOUND)
    set(PMKVQ_HAS_MPI ON)
  elseif(PMKVQ_MPI STREQUAL "AUTO")
    message(STATUS "MPI not found: no plugin for mpirun (Debian package libopenmpi-dev)")
  else()
    message(FATAL_ERROR "PMKVQ_MPI is ON, but pkg-config finds no MPI (Debian package libopenmpi-dev)")
  endif()
endif()

if(PMKVQ_HAS_MPI)
  add_library(pmkvq_mpi MODULE ${PROJECT_SOURCE_DIR}/src/pmkvq/comm_mpi/mpi_plugin.cc)
  target_include_directories(pmkvq_mpi PRIVATE ${PROJECT_SOURCE_DIR}/src)
  # The C++ bindings, which MPI 3 removed, are not used.
  target_compile_definitions(pmkvq_mpi PRIVATE OMPI_SKIP_MPICXX MPICH_SKIP_MPICXX)
  target_link_libraries(pmkvq_mpi PRIVATE pmkvq_options PkgConfig::MPI)
  # Beside the program, which looks there first.
  set_target_properties(pmkvq_mpi PROPERTIES CXX_VISIBILITY_PRESET hidden
    VISIBILITY_INLINES_HIDDEN ON LIBRARY_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/bin)
  install(TARGETS pmkvq_mpi LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR}/pmkvq COMPONENT mpi)
  find_program(PMKVQ_MPIRUN mpirun)
endif()
